"""What was found in a chunk's place and was none, set aside for diagnosis: the newest sixteen."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from preread.store.tiers import files

QUARANTINE_FILES = 16


class Quarantine:
    """A folder that a folder tier keeps beside its chunks. A name begins with when it came, so that
    the oldest are the first. `take` by one at a time. Raises OSError."""

    def __init__(self, root: Path, clock: Callable[[], float]) -> None:
        self._root = root
        self._clock = clock
        self._serial = 0

    def take(self, path: str) -> bool:
        """Move whatever stands there (also a folder or a link) out of the way. False: nothing."""
        if not files.exists(path):
            return False
        self._serial += 1
        name = f"{_stamp(self._clock())}.{self._serial}.{os.path.basename(path)}"
        try:
            files.make_folder(self._root, fsync=False)
            os.rename(path, self._root / name)
        except FileNotFoundError:
            return False
        except OSError:  # no room for quarantine: being rid of it matters more
            return files.unlink(path)
        for old in sorted(e.path for e in files.listed(self._root))[:-QUARANTINE_FILES]:
            files.discard(old)
        return True

    def nbytes(self) -> int:
        total = 0
        for entry in files.listed(self._root):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
        return total

    def drop(self, before: float | None = None) -> int:
        """What came before that time; None: all. How many went."""
        limit = None if before is None else _stamp(before)
        entries = files.listed(self._root)
        return sum(files.discard(e.path) for e in entries if limit is None or e.name < limit)


def _stamp(when: float) -> str:
    return f"{int(when * 1e9):020d}"
