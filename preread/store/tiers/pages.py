"""A page of a book (book.py): records of one size, one after the other."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple

from preread.store.tiers.base import ChunkKey, Gone

RECORD = struct.Struct("<32s16sddB7x")  # key, owner, when, saved, what
HOLDS = 255  # what: the key is the name of a page that this one holds
SHARE = 254  # what: so many bytes (in the place of `saved`) every owner is to keep here


class Record(NamedTuple):
    """One thing that happened to a chunk at `when` (seconds since the epoch). owner: b"" where it
    is not known; saved: seconds per byte; what: 0 for a use, else why it went."""

    key: ChunkKey
    owner: bytes
    when: float
    saved: float = 0.0
    what: int = 0

    @classmethod
    def holds(cls, name: str) -> Record:
        """That the page it is on holds the one of that name."""
        return cls(ChunkKey(name.encode()), b"", 0.0, 0.0, HOLDS)

    @classmethod
    def share(cls, nbytes: int, when: float) -> Record:
        """That every owner is to keep so many bytes."""
        return cls(ChunkKey(bytes(32)), b"", when, float(nbytes), SHARE)


def page_of(records: Iterable[Record]) -> bytes:
    return b"".join(RECORD.pack(*one) for one in records)


def records_of(page: bytes) -> Iterable[Record]:
    """Whole records of chunks and shares; what is damaged or foreign is left out."""
    for key, owner, when, saved, what in RECORD.iter_unpack(_whole(page)):
        known = what <= len(Gone) or what == SHARE
        if -inf < when < inf and 0.0 <= saved < inf and known:
            yield Record(ChunkKey(key), owner if any(owner) else b"", when, saved, what)


def counted(pages: Mapping[str, bytes]) -> list[str]:
    """Pages (by name) of which no other one holds anything. Of two that hold the same ones, as both
    were folded at once, the one that holds more has all that the other has: who looks later sees
    what was there, and more."""
    holds = {name: _held(page) for name, page in pages.items()}
    within = frozenset[str]().union(*holds.values())
    seen, counts = set[str](), []
    for name in sorted(holds.keys() - within, key=lambda name: (-len(holds[name]), name)):
        if holds[name].isdisjoint(seen):
            counts.append(name)
            seen |= holds[name]
    return counts


def _held(page: bytes) -> frozenset[str]:
    """The names of the pages that it holds."""
    told = RECORD.iter_unpack(_whole(page))
    return frozenset(key.decode("ascii", "replace") for key, *_, what in told if what == HOLDS)


def _whole(page: bytes) -> bytes:
    """Without the rest of a record that was cut off."""
    return page[: len(page) - len(page) % RECORD.size]
