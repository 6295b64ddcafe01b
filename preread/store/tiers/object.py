"""Chunks in an object store, one object each, shared by any number of processes and machines.

    PREFIX/chunks/3f/3f…<64 hex digits>     values; a put is atomic
    PREFIX/book/…                           when they were used and what that has saved, see book.py
    PREFIX/quarantine/…                     set aside for diagnosis, the newest sixteen
    PREFIX/count                            how much there was at the last counting

The store is the index: a look-up asks for each key (`window` at a time), so what others write or
remove is seen at once. The only state is an estimate of the bytes held, renewed by a listing when
it is old. A new process begins with what another has counted within the hour; only keeping to a
budget needs a listing of its own, see eviction.Budget.
"""

from __future__ import annotations

import contextlib
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from preread.errors import TierError
from preread.store.tiers.ahead import ahead
from preread.store.tiers.base import (
    MAX_VALUE_BYTES,
    OWNER,
    ChunkEntry,
    ChunkKey,
    ChunkUnreadable,
    Gone,
    Outcome,
    Room,
    TierUsage,
    fresh,
    owner_of,
    stated,
)
from preread.store.tiers.book import Book, Note
from preread.store.tiers.bucket import Bucket, Listed, open_bucket
from preread.store.tiers.eviction import Budget, Held, Standing
from preread.store.tiers.shelves import BucketShelf
from preread.store.tiers.urls import TierUrl

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
    sixteenth each for a moment. share: bytes of one owner that others' writes leave alone. ttl_s:
    `tidy` removes what was not used for so long, 0: never. window: values in flight of one read.
    touch_s: uses are written at most this often."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        name: str = "object",
        budget: int = 0,
        share: int = 0,
        ttl_s: float = 0.0,
        window: int = WINDOW,
        touch_s: float = TOUCH_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._bucket = bucket
        self._ttl_s = ttl_s
        self._window = window
        self._clock = clock
        self._book = Book(clock, BucketShelf(bucket), touch_s)
        self._budget = Budget(budget, share, self, self._book, clock, place=name)
        self._lock = threading.Lock()  # of the count
        self._counted: float | None = None  # when; None: never
        self._chunks = self._held = 0  # held then, and written or removed by us since
        self._serial = 0

    @property
    def budget(self) -> int:
        return self._budget.limit

    def find(self, keys: Sequence[ChunkKey], *, touch: bool = False) -> list[bool]:
        paths = [_path(key) for key in keys]
        found = [size is not None for size in ahead(self._bucket.size, paths, LOOK_UPS)]
        if touch:
            self._book.mark(key for key, held in zip(keys, found, strict=True) if held)
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
            self._book.mark(used)

    def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
        parts = [memoryview(part).cast("B") for part in value]
        nbytes = sum(part.nbytes for part in parts)
        owner = owner_of(parts)
        if not self._budget.make_room(key, owner, nbytes):
            return False
        self._bucket.put(_path(key), parts)
        self._book.mark([key], owner)
        with self._lock:
            self._add(1, nbytes)
        return True

    def remove(self, keys: Sequence[ChunkKey], *, quarantine: bool = False) -> int:
        return self._remove(keys, Gone.SET_ASIDE if quarantine else Gone.REMOVED)

    def _remove(self, keys: Sequence[ChunkKey], why: Gone) -> int:
        quarantine = why is Gone.SET_ASIDE
        paths = list(dict.fromkeys(map(_path, keys)))
        sizes = list(ahead(self._bucket.size, paths, LOOK_UPS))
        held = [path for path, size in zip(paths, sizes, strict=True) if size is not None]
        if quarantine:
            self._set_aside(held)
        self._bucket.delete(held)
        with self._lock:
            self._add(-len(held), 0 if quarantine else -sum(size or 0 for size in sizes))
        self._book.left(map(_key, held), why)
        self._budget.freed()
        return len(held)

    def scan(self) -> Iterator[ChunkEntry]:
        notes = self._book.look()
        return (_entry(listed, notes) for listed in self._listed())

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
        return TierUsage(self._chunks, self._held, self.budget)

    def tidy(self, older_than_s: float) -> int:
        """See base.Tidy: quarantine older than this, and what was not used for `ttl_s`."""
        now = self._clock()
        before = f"{_ASIDE}/{int((now - older_than_s) * 1e9):020d}"
        old = [aside.path for aside in self._bucket.list(_ASIDE) if aside.path < before]
        self._bucket.delete(old)
        entries = list(self._listed())
        notes = self._book.fold({_key(entry.path) for entry in entries})
        standing = (_entry(entry, notes) for entry in entries)
        unused = [entry.key for entry in standing if self._unused(entry, now)]
        return len(old) + self._remove(unused, Gone.EXPIRED)

    def used(self, saved: Mapping[ChunkKey, float]) -> None:
        """See base.Weighs. Other processes know within a minute."""
        self._book.used(saved)

    def left(
        self, keys: Sequence[ChunkKey], *, since: float = 0.0, look: bool = False
    ) -> dict[ChunkKey, Gone]:
        """See base.Recalls."""
        notes = self._book.look() if look else self._book.recall(keys)
        return {k: note.why for k in keys if (note := notes.get(k)) and note.why}

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

    # -- what its budget asks --

    def look(self) -> Held:
        entries = list(self._listed())
        with self._lock:
            aside = self._count(entries)
        notes = self._book.look()
        return Held([_entry(entry, notes) for entry in entries], aside)

    def owners(self, keys: Sequence[ChunkKey]) -> Mapping[ChunkKey, bytes]:
        heads = ahead(lambda key: self._bucket.part(_path(key), OWNER), keys, LOOK_UPS)
        return {key: stated(head) for key, head in zip(keys, heads, strict=True)}

    def evict(self, chunks: Sequence[Standing]) -> None:
        self._bucket.delete([_path(one.key) for one in chunks])
        with self._lock:
            self._add(-len(chunks), -sum(one.nbytes for one in chunks))

    def drop_aside(self) -> None:
        aside = list(self._bucket.list(_ASIDE))
        self._bucket.delete([one.path for one in aside])
        with self._lock:
            self._add(0, -sum(one.nbytes for one in aside))

    # -- the count; under the lock --

    def _add(self, chunks: int, nbytes: int) -> None:
        self._chunks = max(0, self._chunks + chunks)  # others may have changed it since
        self._held = max(0, self._held + nbytes)

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

    def _count(self, entries: Sequence[Listed]) -> int:
        """Bytes set aside, which count as held."""
        aside = sum(aside.nbytes for aside in self._bucket.list(_ASIDE))
        self._chunks = len(entries)
        self._held = sum(entry.nbytes for entry in entries) + aside
        self._counted = self._clock()
        return aside

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
        share=url.nbytes("share"),
        ttl_s=url.seconds("ttl"),
        window=url.count("window", WINDOW),
    )


def _path(key: ChunkKey) -> str:
    name = key.hex()
    return f"{_CHUNKS}/{name[:2]}/{name}"


def _key(path: str) -> ChunkKey:
    return ChunkKey(bytes.fromhex(path[-64:]))


def _entry(listed: Listed, notes: Mapping[ChunkKey, Note]) -> ChunkEntry:
    """What nobody is known to have used counts as used when it was written."""
    key = _key(listed.path)
    note = notes.get(key)
    known = note is not None and note.used > 0
    return ChunkEntry(key, listed.nbytes, note.used if note and known else listed.modified)
