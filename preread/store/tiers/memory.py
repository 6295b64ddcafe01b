"""Chunks in a dictionary: the trivial implementation beside the contract."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from preread.store.tiers.base import (
    OWNER,
    ChunkEntry,
    ChunkKey,
    Gone,
    Outcome,
    Room,
    TierUsage,
    fresh,
    owner_of,
    stated,
)
from preread.store.tiers.book import Book
from preread.store.tiers.crew import together
from preread.store.tiers.eviction import Budget, Held, Standing
from preread.store.tiers.landing import landing

HANDS = 4  # threads that copy values, where there are as many cores


@dataclass(slots=True)
class _Value:
    data: memoryview
    last_used: float
    again: bool = False  # used since it was written


class MemoryTier:
    """Lives and dies with its process. budget: bytes, 0 for none; what saves least for its bytes
    goes first. share: bytes of one owner that others' writes leave alone. make: the memory of a
    value, such as pinned one, which a device reads from as it lies. Quarantine is plain removal:
    nothing here could be looked at later."""

    def __init__(
        self,
        *,
        budget: int = 0,
        share: int = 0,
        name: str = "memory",
        make: Room = fresh,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._clock = clock
        self._make = make
        self._hands = min(HANDS, os.cpu_count() or 1)
        self._lock = threading.RLock()
        self._values: dict[ChunkKey, _Value] = {}
        self._nbytes = 0
        self._fallen: list[tuple[ChunkKey, memoryview]] = []
        self._book = Book(clock, most=0)
        self._budget = Budget(budget, share, self, self._book, clock)

    @property
    def budget(self) -> int:
        return self._budget.limit

    def find(self, keys: Sequence[ChunkKey], *, touch: bool = False) -> list[bool]:
        with self._lock:
            if touch:
                return [self._touch(key) is not None for key in keys]
            return [key in self._values for key in keys]

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        return together(partial(self._read, room), keys, self._hands)

    def _read(self, room: Room, key: ChunkKey) -> Outcome:
        with self._lock:
            value = self._touch(key)
        return None if value is None else landing(room, key, len(value)).take(value, lasts=True)

    def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
        whole = joined(value, self._make)
        with self._lock:
            if not self._budget.make_room(key, owner_of([whole]), len(whole)):
                return False
            self._drop(key)
            self._values[key] = _Value(whole, self._clock())
            self._nbytes += len(whole)
        return True

    def remove(self, keys: Sequence[ChunkKey], *, quarantine: bool = False) -> int:
        with self._lock:
            gone = [key for key in keys if self._drop(key)]
            self._book.left(gone, Gone.SET_ASIDE if quarantine else Gone.REMOVED)
            self._budget.freed()
            self._fold()
        return len(gone)

    def scan(self) -> Iterator[ChunkEntry]:
        return iter(self.look().chunks)

    def usage(self) -> TierUsage:
        with self._lock:
            return TierUsage(len(self._values), self._nbytes, self.budget)

    def used(self, saved: Mapping[ChunkKey, float]) -> None:
        """See base.Weighs."""
        with self._lock:
            self._book.used(saved)
            self._fold()

    def left(
        self, keys: Sequence[ChunkKey], *, since: float = 0.0, look: bool = False
    ) -> dict[ChunkKey, Gone]:
        """See base.Recalls."""
        notes = self._book.recall(keys)
        return {key: note.why for key, note in notes.items() if note.why}

    def fallen(self) -> list[tuple[ChunkKey, memoryview]]:
        """See base.Drops."""
        with self._lock:
            fallen, self._fallen = self._fallen, []
        return fallen

    # -- what its budget asks --

    def look(self) -> Held:
        with self._lock:
            values = self._values.items()
            return Held([ChunkEntry(k, len(v.data), v.last_used) for k, v in values], 0)

    def owners(self, keys: Sequence[ChunkKey]) -> Mapping[ChunkKey, bytes]:
        return {key: stated(bytes(self._values[key].data[OWNER])) for key in keys}

    def evict(self, chunks: Sequence[Standing]) -> None:
        values, keys = self._values, [one.key for one in chunks]
        # Not added to those of before: what nobody asks for must not fill the memory.
        self._fallen = [(key, values[key].data) for key in keys if values[key].again]
        for key in keys:
            self._drop(key)

    def drop_aside(self) -> None:
        return None

    def _fold(self) -> None:
        if self._book.long():
            self._book.fold(self._values)

    def _touch(self, key: ChunkKey) -> memoryview | None:
        if (held := self._values.get(key)) is None:
            return None
        held.last_used, held.again = self._clock(), True
        return held.data

    def _drop(self, key: ChunkKey) -> bool:
        held = self._values.pop(key, None)
        self._nbytes -= len(held.data) if held else 0
        return held is not None


def joined(parts: Sequence[bytes | memoryview], make: Room) -> memoryview:
    """In one piece, of a memory of its own."""
    flat = [memoryview(part).cast("B") for part in parts]
    whole, at = make(sum(map(len, flat))), 0
    for part in flat:
        whole[at : at + len(part)] = part
        at += len(part)
    return whole
