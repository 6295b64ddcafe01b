"""Which chunks go when room is short, and whether a new one is worth it.

Least worth per byte first (GreedyDual-Size-Frequency, Cherkasova 1998, with decay in place of its
inflation), of equal worth the least recently used. The store gives every chunk of a prefix more
worth than those after it (see worth.py), so a prefix loses its end and never its beginning.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from math import inf
from typing import NamedTuple, Protocol

from preread.store.tiers.base import ChunkEntry, ChunkKey, Gone
from preread.store.tiers.book import AHEAD_S, Book, Note

log = logging.getLogger("preread.store")

REFUSED_S = 60.0  # what was refused is refused without another look for so long


class Standing(NamedTuple):
    """A chunk among others. owner: b"" for nobody's; worth: seconds per byte."""

    key: ChunkKey
    nbytes: int
    owner: bytes
    worth: float
    last_used: float


def victims(
    held: Sequence[Standing], newcomer: Standing, need: int, more: int = 0, share: int = 0
) -> list[Standing] | None:
    """What goes so that `need` bytes are free, and up to `more` of what may go as well. None: the
    newcomer is worth less than what would have to go. share: bytes that an owner keeps whatever
    others write; within its own a newcomer has a right to the room of who has more."""
    sizes: Counter[bytes] = Counter()
    for one in held:
        sizes[one.owner] += one.nbytes
    entitled = bool(newcomer.owner) and sizes[newcomer.owner] + newcomer.nbytes <= share
    gone: list[Standing] = []
    freed, closed = 0, set()  # owners that lose no more
    for one in sorted(held, key=lambda one: (one.worth, one.last_used)):
        if freed >= need + more:
            break
        ours = one.owner == newcomer.owner
        better = one.worth > newcomer.worth and (ours or not entitled)
        kept = not ours and one.owner and sizes[one.owner] - one.nbytes < share
        if better or kept:
            closed.add(one.owner)
        if one.owner not in closed:
            gone.append(one)
            freed += one.nbytes
            sizes[one.owner] -= one.nbytes
    return gone if freed >= need else None


class Held(NamedTuple):
    """chunks: all that a medium holds; aside: bytes set aside."""

    chunks: Sequence[ChunkEntry]
    aside: int


class Medium(Protocol):
    """What a budget asks of a tier. Raises TierError when it cannot be asked."""

    def look(self) -> Held: ...

    def owners(self, keys: Sequence[ChunkKey]) -> Mapping[ChunkKey, bytes]:
        """Whose chunks are, by their headers; only asked where shares matter."""
        ...

    def evict(self, chunks: Sequence[Standing]) -> None: ...

    def drop_aside(self) -> None: ...


class Budget:
    """Owns: what this process writes stays within `limit` bytes (0: no limit), and takes no owner
    below `share`. Held bytes are an estimate, renewed by a look whenever a sixteenth of the limit
    has been written since; when room is short what was set aside goes first, and a sixteenth more
    than needed, so that the next writes need no look. Several processes may pass a limit by a
    sixteenth each for a moment. together: given, the order is that of last use alone, and a value
    does not take the place of those it was said to be used with: its own beginning. What share
    others say of the same medium is kept to where it is more. place: for messages. Thread-safe."""

    def __init__(
        self,
        limit: int,
        share: int,
        medium: Medium,
        book: Book,
        clock: Callable[[], float],
        *,
        together: Callable[[ChunkKey], Container[ChunkKey]] | None = None,
        place: str = "",
    ) -> None:
        self.limit = limit
        self._share = share
        self._medium = medium
        self._book = book
        self._clock = clock
        self._together = together
        self._slack = limit // 16
        self._lock = threading.Lock()
        self._held: int | None = None  # None: never looked
        self._unseen = 0  # written since the last look
        self._owners: dict[ChunkKey, bytes] = {}
        self._refused: dict[bytes, Standing] = {}  # by owner, the latest
        self._place = place
        self._warned = False

    def make_room(self, key: ChunkKey, owner: bytes, nbytes: int) -> bool:
        """For a value that is about to be written. False: it does not fit, or is worth less than
        what would have to go. Raises TierError."""
        if not self.limit or nbytes > self.limit:
            return not self.limit
        self._book.promise(self._share)
        with self._lock:
            known = self._held is not None and self._unseen <= self._slack
            if not known or (self._held or 0) + nbytes > self.limit:
                if self._hopeless(key, owner, nbytes):
                    return False
                if (held := self._evict(key, owner, nbytes)) is None:
                    return False
                self._held, self._unseen = held, 0
            self._held = (self._held or 0) + nbytes
            self._unseen += nbytes
        return True

    def freed(self) -> None:
        """Something was removed: what is refused next is looked at first."""
        with self._lock:
            self._refused.clear()

    def _hopeless(self, key: ChunkKey, owner: bytes, nbytes: int) -> bool:
        """No better than what was refused a moment ago: a look at a far medium takes its time."""
        last = self._refused.get(owner)
        if last is None or self._together or nbytes < last.nbytes:
            return False
        now = self._clock()
        worth = self._book.recall([key]).get(key, Note()).worth(now)
        return abs(now - last.last_used) < REFUSED_S and worth <= last.worth

    def _evict(self, key: ChunkKey, owner: bytes, nbytes: int) -> int | None:
        """Bytes held afterwards; None: nothing was done, as it is not worth it."""
        chunks, aside = self._medium.look()
        size = sum(entry.nbytes for entry in chunks)
        if size + aside + nbytes <= self.limit:
            return size + aside
        notes = self._book.fold({entry.key for entry in chunks})
        now, siblings = self._clock(), self._together(key) if self._together else ()
        share = self._kept_share()
        standing = self._standing(chunks, notes, siblings, share)
        worth = now + AHEAD_S if self._together else notes.get(key, Note()).worth(now)
        newcomer = Standing(key, nbytes, owner, worth, now)
        need = size + nbytes - self.limit
        gone = victims(standing, newcomer, need, self._slack, share) if need > 0 else []
        if gone is None:
            self._refused[owner] = newcomer
            return None
        if aside:
            self._medium.drop_aside()
        self._medium.evict(gone)
        self._book.left([one.key for one in gone], Gone.EVICTED)
        return size - sum(one.nbytes for one in gone)

    def _kept_share(self) -> int:
        """The largest that any process has said."""
        said = self._book.share
        if said > self._share and not self._warned:
            self._warned = True
            log.warning(
                "tier %s: this process says share=%d, another has said share=%d, which is kept to. "
                "Say the same everywhere: see docs/security.md, Tenants.",
                self._place, self._share, said,
            )  # fmt: skip
        return max(said, self._share)

    def _standing(
        self,
        chunks: Sequence[ChunkEntry],
        notes: Mapping[ChunkKey, Note],
        siblings: Container[ChunkKey],
        share: int,
    ) -> list[Standing]:
        owners = self._owned([entry.key for entry in chunks], notes) if share else {}
        now, nothing = self._clock(), Note()

        def worth(entry: ChunkEntry) -> float:
            if self._together:
                return inf if entry.key in siblings else entry.last_used
            return notes.get(entry.key, nothing).worth(now)

        return [
            Standing(
                entry.key,
                entry.nbytes,
                owners.get(entry.key, b""),
                worth(entry),
                entry.last_used,
            )
            for entry in chunks
        ]

    def _owned(
        self, keys: Sequence[ChunkKey], notes: Mapping[ChunkKey, Note]
    ) -> Mapping[ChunkKey, bytes]:
        """A chunk's owner never changes: its header is looked at once."""
        known = {
            key: owner
            for key in keys
            if (owner := self._owners.get(key) or notes.get(key, Note()).owner)
        }
        self._owners = {**known, **self._medium.owners([k for k in keys if k not in known])}
        return self._owners
