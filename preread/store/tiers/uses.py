"""When chunks were last used, kept in a store that has no access times.

Every process adds small immutable objects, at most one a minute, each a list of (key, time). Who
wants to know reads all of them, and folds them into one when there are many. What a process that
died had not yet written is lost: the order of eviction suffers a little, nothing else.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Container, Iterable
from uuid import uuid4

from preread.errors import TierError
from preread.store.tiers.ahead import ahead
from preread.store.tiers.base import ChunkKey
from preread.store.tiers.bucket import Bucket

FOLDER = "uses"
RECORD = struct.Struct("<32sd")  # key, seconds since the epoch
MOST = 64  # objects; more are folded
AHEAD_S = 3600.0  # machines' clocks may differ by this much
AT_ONCE = 16  # read together


class Uses:
    """every_s: uses are written at most this often. Thread-safe."""

    def __init__(self, bucket: Bucket, clock: Callable[[], float], every_s: float) -> None:
        self._bucket = bucket
        self._clock = clock
        self._every_s = every_s
        self._lock = threading.Lock()
        self._pending: dict[ChunkKey, float] = {}  # not yet written
        self._written: float | None = None

    def mark(self, keys: Iterable[ChunkKey]) -> None:
        """Used now. A store that cannot be written loses the order of use, not the call."""
        now = self._clock()
        with self._lock:
            self._pending.update(dict.fromkeys(keys, now))
            due = self._written is None or abs(now - self._written) >= self._every_s
            if not self._pending or not due:
                return
            uses, self._pending, self._written = self._pending, {}, now
        with contextlib.suppress(TierError):
            self._write(uses)

    def latest(self) -> dict[ChunkKey, float]:
        """The last use of every chunk of which one is known. Raises TierError."""
        return self._merged([entry.path for entry in self._bucket.list(FOLDER)])

    def fold(self, held: Container[ChunkKey]) -> dict[ChunkKey, float]:
        """`latest`, and if it took many objects one takes their place, for chunks that are held.
        Whoever folds at the same time writes the same. Raises TierError."""
        paths = [entry.path for entry in self._bucket.list(FOLDER)]
        uses = self._merged(paths)
        if len(paths) > MOST:
            self._write({key: when for key, when in uses.items() if key in held})
            self._bucket.delete(paths)
        return uses

    def _merged(self, paths: list[str]) -> dict[ChunkKey, float]:
        with self._lock:
            uses = dict(self._pending)
        latest = self._clock() + AHEAD_S
        for found in ahead(self._bucket.get, paths, AT_ONCE):  # None: somebody has just folded it
            whole = found.data.nbytes - found.data.nbytes % RECORD.size if found else 0
            for key, when in RECORD.iter_unpack(found.data[:whole]) if found else ():
                if when <= latest:  # else a clock was ahead, and it would never be idle
                    uses[ChunkKey(key)] = max(when, uses.get(ChunkKey(key), when))
        return uses

    def _write(self, uses: dict[ChunkKey, float]) -> None:
        body = b"".join(RECORD.pack(key, when) for key, when in uses.items())
        self._bucket.put(f"{FOLDER}/{uuid4().hex}", [body])
