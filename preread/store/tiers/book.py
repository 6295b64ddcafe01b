"""What a tier knows of its chunks beside their bytes: when each was used, what its uses have saved,
whose it is, and why it went.

Where a medium is shared by processes, each of them adds small immutable pages (pages.py) to a shelf
beside the chunks, at most one a minute, each a list of records. Who makes room reads all of them,
and folds them into one when there are many. That one says which it holds: as long as these are
there too, for who folds is not done yet, or has died, or another folds as well, no use counts
twice. What a process that died had not yet written is lost: the order of eviction suffers a little,
nothing else.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from hashlib import sha256
from math import inf
from typing import NamedTuple, Protocol
from uuid import uuid4

from preread.errors import TierError
from preread.store.tiers.base import ChunkKey, Gone
from preread.store.tiers.pages import SHARE, Record, counted, page_of, records_of

HALF_S = 86400.0  # what a use has saved counts half after so long
PROMISE_S = 86400.0  # a share that was said counts for so long, and is said again well before
# Pages; more are folded. Who finds a chunk gone reads them all; a use of a long prefix makes one of
# half a megabyte.
MOST = 16
SEEN = 1 << 16  # notes in memory: some 20 MB
KEPT = 4096  # notes on chunks that are not held: the latest
AHEAD_S = 3600.0  # machines' clocks may differ by this much


class Note(NamedTuple):
    """All that happened to a chunk. used: last; saved: by all uses, each halved every HALF_S, as of
    then; gone, left: why it went at last, and when."""

    used: float = -inf
    saved: float = 0.0
    owner: bytes = b""
    gone: Gone | None = None
    left: float = -inf

    def plus(self, one: Record) -> Note:
        owner = self.owner or one.owner
        if one.what:
            if one.when < self.left:
                return self._replace(owner=owner)
            return self._replace(owner=owner, gone=Gone(one.what), left=one.when)
        used = max(self.used, one.when)
        saved = self.worth(used) + one.saved * _decay(used - one.when)
        return self._replace(used=used, saved=saved, owner=owner)

    def worth(self, now: float) -> float:
        """What it may be hoped to save, seconds per byte. Sums of decayed uses keep their order
        while nothing is used (forward decay: Cormode et al., ICDE 2009)."""
        return self.saved * _decay(now - self.used)

    @property
    def why(self) -> Gone | None:
        """Of a chunk that is not held; None: it was not this tier that dropped it."""
        return self.gone if self.left >= self.used else None

    def records(self, key: ChunkKey) -> list[Record]:
        said = [Record(key, self.owner, self.used, self.saved)] if self.used > -inf else []
        return [*said, Record(key, self.owner, self.left, 0.0, self.gone)] if self.gone else said


class Shelf(Protocol):
    """Where pages lie. Raises TierError when it cannot be used."""

    def names(self) -> list[str]: ...

    def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Those that are (still) there, by name."""
        ...

    def put(self, name: str, page: bytes) -> None: ...

    def drop(self, names: Sequence[str]) -> None: ...


class Book:
    """shelf: None for a medium of one process. every_s: a page is written at most this often.
    most: chunks remembered without the shelf, the latest; 0: all that are held. Thread-safe."""

    def __init__(
        self,
        clock: Callable[[], float],
        shelf: Shelf | None = None,
        every_s: float = 60.0,
        *,
        most: int = SEEN,
    ) -> None:
        self._clock = clock
        self._shelf = shelf
        self._every_s = every_s
        self._most = most
        self._lock = threading.Lock()
        self._pending: list[Record] = []  # not on the shelf yet
        self._seen: dict[ChunkKey, Note] = {}  # as far as this process has looked
        self._written: float | None = None
        self._looked: float | None = None
        self._unfolded = MOST  # pages of ours since we last looked how many there are
        self._folded = 0  # notes in memory when it was folded last
        self._promised: float | None = None  # when it was said last what share is to be kept
        self._shares: dict[int, float] = {}  # that anybody has said: bytes -> when, the latest

    def mark(self, keys: Iterable[ChunkKey], owner: bytes = b"") -> None:
        """Used now; owner: of all of them, where it is known."""
        now = self._clock()
        self._add([Record(key, owner, now) for key in keys])

    def used(self, saved: Mapping[ChunkKey, float]) -> None:
        """Used now, which has saved so many seconds per byte."""
        now = self._clock()
        self._add([Record(key, b"", now, seconds) for key, seconds in saved.items()])

    def left(self, keys: Iterable[ChunkKey], why: Gone) -> None:
        """They went now; written at once, as this process may be the last that knows."""
        now = self._clock()
        if records := [Record(key, b"", now, 0.0, why) for key in keys]:
            self._add(records)
            self.flush()

    def promise(self, share: int) -> None:
        """Who makes room here is to leave every owner so many bytes; known to all from now on."""
        if self._shelf is None or not share or not self.promises():
            return
        self.heard(share)
        with self._lock:
            self._pending += [Record.share(share, self._clock())]
        self.flush()

    def promises(self) -> bool:
        """Whether it is time to say so. Asked once, by who then says it."""
        now = self._clock()
        if self._promised is not None and now - self._promised < PROMISE_S / 4:
            return False
        self._promised = now
        return True

    def heard(self, share: int) -> None:
        """Somebody has said so."""
        with self._lock:
            self._shares[share] = self._clock()

    @property
    def share(self) -> int:
        """The largest that anybody has said lately, as far as this process has looked: who says
        less takes nobody's promised room."""
        oldest = self._clock() - PROMISE_S
        with self._lock:
            return max((share for share, when in self._shares.items() if when > oldest), default=0)

    def flush(self) -> None:
        """What is pending, at once. A shelf that cannot be written loses the order of use, not the
        call."""
        if self._shelf is None:
            return
        with self._lock:
            page, self._pending, self._written = self._pending, [], self._clock()
        if page:
            self._unfolded += 1
            with contextlib.suppress(TierError):
                self._shelf.put(uuid4().hex, page_of(page))

    def recall(self, keys: Iterable[ChunkKey]) -> dict[ChunkKey, Note]:
        """What is known without looking at the shelf."""
        with self._lock:
            return {key: note for key in keys if (note := self._seen.get(key))}

    def stale(self) -> bool:
        """Whether the last look at the shelf was long ago."""
        return self._looked is None or abs(self._clock() - self._looked) >= self._every_s

    def look(self) -> dict[ChunkKey, Note]:
        """All that anybody knows. Raises TierError."""
        notes = self._read(self._shelf.names() if self._shelf else [])
        self._keep(notes)
        return notes

    def long(self) -> bool:
        """Whether it has many pages, looked at once in a while; or, without a shelf, notes.
        Raises TierError."""
        if self._shelf is None:
            return len(self._seen) > 2 * (self._folded + KEPT)
        if self._unfolded < MOST // 2:
            return False
        self._unfolded = 0
        return len(self._shelf.names()) > MOST

    def fold(self, held: Container[ChunkKey]) -> dict[ChunkKey, Note]:
        """`look`, and if it took many pages one takes their place: of chunks that are held, and of
        the others what happened last. Whoever folds the same pages writes the same one; nobody
        does when somebody else has begun to drop them. Raises TierError."""
        names = sorted(self._shelf.names()) if self._shelf else []
        notes = _bounded(self._read(names), held)
        pages = self._shelf.get(names) if self._shelf and len(names) > MOST else {}
        if self._shelf is not None and pages and len(pages) == len(names):
            folded = _bounded(_merged({}, self._records(pages)), held)
            page = [Record.holds(name) for name in names]
            page += [one for key, note in folded.items() for one in note.records(key)]
            page += [Record.share(share, when) for share, when in self._shares.items()]
            self._shelf.put(sha256("\n".join(names).encode()).hexdigest()[:32], page_of(page))
            self._shelf.drop(names)
        self._keep(notes)
        self._folded = len(notes)
        return notes

    def _keep(self, notes: dict[ChunkKey, Note]) -> None:
        """For who asks without looking."""
        with self._lock:
            self._looked = self._clock()
            self._seen = dict(notes)
            self._bound()

    def _bound(self) -> None:
        while self._most and len(self._seen) > self._most:
            self._seen.pop(next(iter(self._seen)))

    def _add(self, records: list[Record]) -> None:
        now = self._clock()
        with self._lock:
            _merged(self._seen, records)
            self._bound()
            if self._shelf is None:
                return
            self._pending += records
            due = self._written is None or abs(now - self._written) >= self._every_s
        if due and records:
            self.flush()

    def _read(self, names: list[str]) -> dict[ChunkKey, Note]:
        if self._shelf is None:
            with self._lock:
                return dict(self._seen)
        found = self._records(self._shelf.get(names))
        with self._lock:
            found += [one for one in self._pending if one.what != SHARE]
        return _merged({}, found)

    def _records(self, pages: Mapping[str, bytes]) -> list[Record]:
        latest = self._clock() + AHEAD_S
        told = (one for name in counted(pages) for one in records_of(pages[name]))
        records = [one for one in told if one.when <= latest]
        with self._lock:
            for one in records:
                if one.what == SHARE:
                    share = int(one.saved)
                    self._shares[share] = max(one.when, self._shares.get(share, one.when))
            oldest = latest - AHEAD_S - PROMISE_S
            self._shares = {n: when for n, when in self._shares.items() if when > oldest}
        return [one for one in records if one.what != SHARE]


def _decay(seconds: float) -> float:
    kept: float = 2.0 ** -(max(seconds, 0.0) / HALF_S)
    return kept


def _merged(notes: dict[ChunkKey, Note], records: Iterable[Record]) -> dict[ChunkKey, Note]:
    """The notes with those records, what happened last at the end."""
    nothing = Note()
    for one in records:
        notes[one.key] = notes.pop(one.key, nothing).plus(one)
    return notes


def _bounded(notes: dict[ChunkKey, Note], held: Container[ChunkKey]) -> dict[ChunkKey, Note]:
    others = [key for key in notes if key not in held]
    if len(others) <= KEPT:
        return notes
    others.sort(key=lambda key: max(notes[key].used, notes[key].left))
    old = set(others[:-KEPT])
    return {key: note for key, note in notes.items() if key not in old}
