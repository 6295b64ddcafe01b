"""Chunks in a dictionary: the trivial implementation beside the contract."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from preread.store.tiers.base import ChunkEntry, ChunkKey, Outcome, Room, TierUsage, fresh


class MemoryTier:
    """Lives and dies with its process. budget: bytes, 0 for none; the least recently used value
    goes first. Quarantine is plain removal: nothing here could be looked at later."""

    def __init__(
        self, *, budget: int = 0, name: str = "memory", clock: Callable[[], float] = time.time
    ) -> None:
        self.name = name
        self._budget = budget
        self._clock = clock
        self._lock = threading.Lock()
        self._values: dict[ChunkKey, tuple[bytes, float]] = {}  # in order of last use
        self._nbytes = 0

    def find(self, keys: Sequence[ChunkKey], *, touch: bool = False) -> list[bool]:
        with self._lock:
            if touch:
                return [self._touch(key) is not None for key in keys]
            return [key in self._values for key in keys]

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        for key in keys:
            with self._lock:
                value = self._touch(key)
            if value is None:
                yield None
                continue
            copy = room(len(value))
            copy[:] = value
            yield copy

    def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
        whole = b"".join(value)
        if self._budget and len(whole) > self._budget:
            return False
        with self._lock:
            self._drop(key)
            while self._budget and self._nbytes + len(whole) > self._budget:
                self._drop(next(iter(self._values)))
            self._values[key] = (whole, self._clock())
            self._nbytes += len(whole)
        return True

    def remove(self, keys: Sequence[ChunkKey], *, quarantine: bool = False) -> int:
        with self._lock:
            return sum(self._drop(key) for key in keys)

    def scan(self) -> Iterator[ChunkEntry]:
        with self._lock:
            entries = [ChunkEntry(k, len(v), used) for k, (v, used) in self._values.items()]
        return iter(entries)

    def usage(self) -> TierUsage:
        with self._lock:
            return TierUsage(len(self._values), self._nbytes, self._budget)

    def _touch(self, key: ChunkKey) -> bytes | None:
        if (held := self._values.pop(key, None)) is None:
            return None
        self._values[key] = (held[0], self._clock())
        return held[0]

    def _drop(self, key: ChunkKey) -> bool:
        held = self._values.pop(key, None)
        self._nbytes -= len(held[0]) if held else 0
        return held is not None
