"""Claims between the processes of one home: locked files. A process that ends, however, loses its
locks, so nothing has to run out."""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path

from preread.errors import HomeError


class FileClaims:
    """See store/claims.py. folder: made when first needed; ttl_s means nothing here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}
        self._guard = threading.Lock()

    def take(self, key: str, ttl_s: float) -> bool:
        with self._guard:
            if key not in self._held:
                handle = self._lock(self._folder / key)
                if handle is None:
                    return False
                self._held[key] = handle
            return True

    def drop(self, key: str) -> None:
        with self._guard:
            handle = self._held.pop(key, None)
            if handle is not None:
                with suppress(OSError):  # one that stays is empty, and the next owner's
                    (self._folder / key).unlink(missing_ok=True)  # before it is free: see _lock
                os.close(handle)

    def _lock(self, path: Path) -> int | None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                    return None
                if _is_at(handle, path):
                    return handle
                os.close(handle)  # its owner removed it after it was opened here
        except OSError as exc:
            raise HomeError(
                f"{path.parent}: work cannot be claimed: {exc.strerror}.",
                hint="Mend its permissions, or set PREREAD_HOME to another folder.",
            ) from exc


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
