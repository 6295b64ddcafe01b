"""Chunks in a folder that may hang: a disk that fails, a mount whose server is gone.

folder.py does the work; here nobody waits for it longer than a deadline (guard.py), and what comes
late changes nothing that is seen.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from preread.errors import TierError
from preread.store.tiers.base import (
    ChunkEntry,
    ChunkKey,
    Gone,
    Outcome,
    Room,
    TierUsage,
    fresh,
    light,
)
from preread.store.tiers.folder import TOUCH_S, FolderTier
from preread.store.tiers.guard import Guard

DEADLINE_S = 2.0
# Deadlines that a call may take which has to look through the whole folder, or to write and to make
# room before.
PATIENT = 4.0
ENTRIES = 1024  # looked at in one call of a scan


class DiskTier:
    """See FolderTier. deadline_s: for a look-up, a use, and a file that is read; PATIENT times as
    long for what writes or removes; 0: none."""

    def __init__(
        self,
        root: Path,
        *,
        budget: int = 0,
        share: int = 0,
        fsync: bool = True,
        name: str = "disk",
        window: int = 0,
        deadline_s: float = DEADLINE_S,
        touch_s: float = TOUCH_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._folder = FolderTier(
            root, budget=budget, share=share, fsync=fsync, name=name, window=window,
            touch_s=touch_s, clock=clock,
        )  # fmt: skip
        self._guard = Guard(str(root), deadline_s)
        with contextlib.suppress(TierError):  # a read-only folder can still be read
            self._guard.call("tidy", lambda _: self._folder.sweep_temp())

    @property
    def budget(self) -> int:
        return self._folder.budget

    @property
    def hanging(self) -> int:
        """Calls that have not come back within their deadline."""
        return self._guard.hanging

    def find(self, keys: Sequence[ChunkKey], *, touch: bool = False) -> list[bool]:
        return self._guard.call("look into", lambda _: self._folder.find(keys, touch=touch))

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        return self._guard.stream("read", self._folder.read(keys, room), light)

    def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
        """What is not written in time never shows: by then the value may be another."""
        write = self._folder.write
        return self._guard.call("write to", lambda wanted: write(key, value, wanted), PATIENT)

    def remove(self, keys: Sequence[ChunkKey], *, quarantine: bool = False) -> int:
        remove = self._folder.remove
        return self._guard.call(
            "remove from", lambda _: remove(keys, quarantine=quarantine), PATIENT
        )

    def scan(self) -> Iterator[ChunkEntry]:
        entries = self._folder.scan()
        while some := self._guard.call("scan", lambda _: list(islice(entries, ENTRIES)), PATIENT):
            yield from some

    def usage(self) -> TierUsage:
        sizes = [entry.nbytes for entry in self.scan()]
        aside = self._guard.call("scan", lambda _: self._folder.aside_bytes())
        return TierUsage(len(sizes), sum(sizes) + aside, self.budget)

    def tidy(self, older_than_s: float) -> int:
        return self._guard.call("tidy", lambda _: self._folder.tidy(older_than_s), PATIENT)

    def used(self, saved: Mapping[ChunkKey, float]) -> None:
        self._guard.call("write to", lambda _: self._folder.used(saved))

    def left(
        self, keys: Sequence[ChunkKey], *, since: float = 0.0, look: bool = False
    ) -> dict[ChunkKey, Gone]:
        left = self._folder.left
        return self._guard.call("look into", lambda _: left(keys, since=since, look=look))
