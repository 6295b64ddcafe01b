"""Chunks in an object store, one object each, shared by any number of processes and machines.

    PREFIX/chunks/3f/3f…<64 hex digits>     values; a put is atomic
    PREFIX/uses/…                           when they were last used, see uses.py
    PREFIX/quarantine/…                     set aside for diagnosis, the newest sixteen
    PREFIX/count                            how much there was at the last counting

The store is the index: a look-up asks for each key (`window` at a time), so what others write or
remove is seen at once. The only state is an estimate of the bytes held, renewed by a listing when
it is old, or when a sixteenth of the budget has been written since. A new process begins with what
another has counted within the hour; only keeping to a budget needs a listing of its own.
"""

from __future__ import annotations

import contextlib
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from preread.errors import TierError
from preread.store.tiers.ahead import ahead
from preread.store.tiers.base import (
    MAX_VALUE_BYTES,
    ChunkEntry,
    ChunkKey,
    ChunkUnreadable,
    Outcome,
    Room,
    TierUsage,
    fresh,
)
from preread.store.tiers.bucket import Bucket, Listed, open_bucket
from preread.store.tiers.urls import TierUrl
from preread.store.tiers.uses import Uses

DEADLINE_S = 5.0
WINDOW = 8
LOOK_UPS = 32  # in flight: small requests, most of whose time is the way there and back
TOUCH_S = 60.0  # last use is written at most this often
COUNT_S = 300.0  # an older count of what is held is made anew
OTHERS_COUNT_S = 3600.0  # ditto, of one that another process has made
QUARANTINE_OBJECTS = 16
_CHUNKS, _ASIDE, _COUNT = "chunks", "quarantine", "count"
_COUNTED = struct.Struct("<dQQ")  # when, chunks, bytes
_PATH = re.compile(r"chunks/([0-9a-f]{2})/(\1[0-9a-f]{62})")


class ObjectTier:
    """budget: bytes of chunks and quarantine, 0 for none; several processes may pass it by a
    sixteenth each for a moment. ttl_s: `tidy` removes what was not used for so long, 0: never.
    window: values in flight of one read. touch_s: uses are written at most this often."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        name: str = "object",
        budget: int = 0,
        ttl_s: float = 0.0,
        window: int = WINDOW,
        touch_s: float = TOUCH_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._bucket = bucket
        self._budget = budget
        self._ttl_s = ttl_s
        self._slack = budget // 16
        self._window = window
        self._clock = clock
        self._uses = Uses(bucket, clock, touch_s)
        self._lock = threading.Lock()  # of the estimate
        self._counted: float | None = None  # when; None: never
        self._listed_here = False  # and not just taken over from another process
        self._chunks = self._held = 0  # held then, and written or removed by us since
        self._unseen = 0  # bytes written since
        self._serial = 0

    def find(self, keys: Sequence[ChunkKey], *, touch: bool = False) -> list[bool]:
        paths = [_path(key) for key in keys]
        found = [size is not None for size in ahead(self._bucket.size, paths, LOOK_UPS)]
        if touch:
            self._uses.mark(key for key, held in zip(keys, found, strict=True) if held)
        return found

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        used: list[ChunkKey] = []
        outcomes = ahead(lambda key: self._read(_path(key), room), keys, self._window)
        try:
            for key, outcome in zip(keys, outcomes, strict=True):
                if isinstance(outcome, memoryview):
                    used.append(key)
                yield outcome
        finally:
            self._uses.mark(used)

    def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
        parts = [memoryview(part).cast("B") for part in value]
        nbytes = sum(part.nbytes for part in parts)
        with self._lock:
            if not self._make_room(nbytes):
                return False
            self._add(1, nbytes)  # before it is there: others make room meanwhile
        try:
            self._bucket.put(_path(key), parts)
        except TierError:
            with self._lock:
                self._add(-1, -nbytes)
            raise
        self._uses.mark([key])
        return True

    def remove(self, keys: Sequence[ChunkKey], *, quarantine: bool = False) -> int:
        paths = list(dict.fromkeys(map(_path, keys)))
        sizes = list(ahead(self._bucket.size, paths, LOOK_UPS))
        held = [path for path, size in zip(paths, sizes, strict=True) if size is not None]
        if quarantine:
            self._set_aside(held)
        self._bucket.delete(held)
        with self._lock:
            self._add(-len(held), 0 if quarantine else -sum(size or 0 for size in sizes))
        return len(held)

    def scan(self) -> Iterator[ChunkEntry]:
        uses = self._uses.latest()
        return (_entry(listed, uses) for listed in self._listed())

    def usage(self) -> TierUsage:
        now = self._clock()
        if self._counted is None and (count := self._others_count(now)):
            with self._lock:
                self._chunks, self._held = count
                self._counted = now
        elif self._counted is None or abs(now - self._counted) > COUNT_S:
            entries = list(self._listed())  # takes its time, and others write meanwhile
            with self._lock:
                self._count(entries)
            self._tell_count()
        return TierUsage(self._chunks, self._held, self._budget)

    def tidy(self, older_than_s: float) -> int:
        """See base.Tidy: quarantine older than this, and what was not used for `ttl_s`."""
        now = self._clock()
        before = f"{_ASIDE}/{int((now - older_than_s) * 1e9):020d}"
        old = [aside.path for aside in self._bucket.list(_ASIDE) if aside.path < before]
        self._bucket.delete(old)
        entries = list(self._listed())
        uses = self._uses.fold({_key(entry.path) for entry in entries})
        unused = [e.key for e in (_entry(entry, uses) for entry in entries) if self._unused(e, now)]
        return len(old) + self.remove(unused)

    def _unused(self, entry: ChunkEntry, now: float) -> bool:
        return bool(self._ttl_s) and entry.last_used < now - self._ttl_s

    def _read(self, path: str, room: Room) -> Outcome:
        """The size is known before the first byte: what is too large is not fetched."""

        def bounded(nbytes: int) -> memoryview:
            if nbytes > MAX_VALUE_BYTES:
                raise ChunkUnreadable(f"{path}: {nbytes} bytes are too many.")
            return room(nbytes)

        try:
            found = self._bucket.get(path, bounded)
        except ChunkUnreadable as exc:
            return exc
        return None if found is None else found.data

    def _listed(self) -> Iterator[Listed]:
        return (entry for entry in self._bucket.list(_CHUNKS) if _PATH.fullmatch(entry.path))

    # -- the budget; under the lock --

    def _add(self, chunks: int, nbytes: int) -> None:
        self._chunks = max(0, self._chunks + chunks)  # others may have changed it since
        self._held = max(0, self._held + nbytes)
        self._unseen += max(0, nbytes)

    def _others_count(self, now: float) -> tuple[int, int] | None:
        """(chunks, bytes), if somebody has counted lately."""
        found = self._bucket.get(_COUNT)
        if found is None or found.data.nbytes != _COUNTED.size:
            return None
        when, chunks, nbytes = _COUNTED.unpack(found.data)
        return (chunks, nbytes) if abs(now - when) <= OTHERS_COUNT_S else None

    def _tell_count(self) -> None:
        with contextlib.suppress(TierError):  # one that cannot be written can still be read
            value = _COUNTED.pack(self._clock(), self._chunks, self._held)
            self._bucket.put(_COUNT, [value])

    def _count(self, entries: Sequence[Listed]) -> None:
        self._chunks = len(entries)
        self._held = sum(entry.nbytes for entry in entries)
        self._held += sum(aside.nbytes for aside in self._bucket.list(_ASIDE))
        self._counted, self._unseen, self._listed_here = self._clock(), 0, True

    def _make_room(self, nbytes: int) -> bool:
        """Keep to the budget: quarantine goes first, then the least recently used chunks, a
        sixteenth more than needed so that the next writes need no listing."""
        if not self._budget or nbytes > self._budget:
            return not self._budget
        known = self._listed_here and self._unseen <= self._slack
        if known and self._held + nbytes <= self._budget:
            return True
        listed = list(self._listed())
        self._count(listed)
        if self._held + nbytes > self._budget:
            self._bucket.delete([aside.path for aside in self._bucket.list(_ASIDE)])
            uses = self._uses.fold({_key(entry.path) for entry in listed})
            held, gone = sum(entry.nbytes for entry in listed), []
            for entry in sorted((_entry(e, uses) for e in listed), key=lambda e: e.last_used):
                if held <= max(0, self._budget - self._slack - nbytes):
                    break
                gone.append(_path(entry.key))
                held -= entry.nbytes
            self._bucket.delete(gone)
            self._chunks, self._held = len(listed) - len(gone), held
        return True

    def _set_aside(self, paths: Sequence[str]) -> None:
        """Copies for diagnosis; being rid of what is bad matters more."""
        try:
            for path in paths:
                self._serial += 1
                when = f"{int(self._clock() * 1e9):020d}.{self._serial:06d}"
                self._bucket.copy(path, f"{_ASIDE}/{when}.{path.rpartition('/')[2]}")
            kept = sorted(aside.path for aside in self._bucket.list(_ASIDE))
            self._bucket.delete(kept[:-QUARANTINE_OBJECTS])
        except TierError:
            return


def open_object(url: TierUrl) -> ObjectTier:
    """The tier of an `s3://`, `gs://`, `az://` or `file://` URL; nothing is asked of the store yet.
    Raises ConfigError."""
    return ObjectTier(
        open_bucket(url, url.seconds("deadline", DEADLINE_S)),
        name=url.name,
        budget=url.nbytes("budget"),
        ttl_s=url.seconds("ttl"),
        window=url.count("window", WINDOW),
    )


def _path(key: ChunkKey) -> str:
    name = key.hex()
    return f"{_CHUNKS}/{name[:2]}/{name}"


def _key(path: str) -> ChunkKey:
    return ChunkKey(bytes.fromhex(path[-64:]))


def _entry(listed: Listed, uses: dict[ChunkKey, float]) -> ChunkEntry:
    key = _key(listed.path)
    return ChunkEntry(key, listed.nbytes, uses.get(key, listed.modified))
