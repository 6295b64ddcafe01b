"""The tier contract: a place where chunks live. Six methods, all sync, all thread-safe.

A tier moves bytes and knows nothing of models. It never judges a chunk: the store verifies every
chunk after reading it and before the model may see it. `preread.testing.conformance_tier` is the
suite that every tier passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NewType, Protocol, TypeAlias, runtime_checkable

from preread.errors import TierError

ChunkKey = NewType("ChunkKey", bytes)  # 32 bytes, see store/keys.py

MAX_VALUE_BYTES = 1 << 30  # no value is larger; a tier need not read what claims to be
# Where a value says whose it is: a tenant's digest, of a sealed one a name that stands for it. All
# a tier ever looks at, and not verified: it decides about room, never about what is served.
OWNER = slice(128, 144)


class ChunkUnreadable(TierError):
    """This one value cannot be read (a folder in its place, no permission, a bad sector); the tier
    itself works. The store sets it aside and computes the tokens again."""

    retryable = False


class Landed:
    """A value that has reached who wants it, as its landing says: nothing that a tier may look
    into. See tiers/landing.py."""

    __slots__ = ()

    @property
    def light(self) -> bool:
        """Whether it holds no memory but its place's."""
        return False


# What a read of one key comes to: the value; what its landing made of it; this one cannot be read;
# not held.
Outcome: TypeAlias = memoryview | Landed | ChunkUnreadable | None


def light(outcome: Outcome) -> bool:
    """Any number of them may wait."""
    return not isinstance(outcome, memoryview | Landed) or (
        isinstance(outcome, Landed) and outcome.light
    )


# nbytes -> a writable view of exactly that many bytes. Called from any thread. The same memory may
# be given again only when nobody holds the earlier view: an abandoned read may still write to it.
Room: TypeAlias = Callable[[int], memoryview]


def fresh(nbytes: int) -> memoryview:
    """Room in ordinary memory, not zero-filled."""
    import numpy as np

    return np.empty(nbytes, np.uint8).data


def owner_of(value: Sequence[bytes | memoryview]) -> bytes:
    """Whose the value is that these parts make; b"" where it does not say."""
    head = bytes(memoryview(value[0]).cast("B")[: OWNER.stop]) if value else b""
    return stated(head[OWNER])


def stated(owner: bytes) -> bytes:
    """What stands at OWNER, b"" for nobody."""
    return owner if len(owner) == OWNER.stop - OWNER.start and any(owner) else b""


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """What a tier knows about one chunk without opening it."""

    key: ChunkKey
    nbytes: int
    last_used: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class TierUsage:
    """chunks and bytes held; budget in bytes (0: none)."""

    chunks: int
    nbytes: int
    budget: int


@runtime_checkable
class Tier(Protocol):
    """A place chunks live."""

    @property
    def name(self) -> str: ...

    @property
    def budget(self) -> int:
        """Bytes it may hold, 0 for any, as far as is known without asking anybody."""
        ...

    def find(self, keys: Sequence[ChunkKey], *, touch: bool = False) -> list[bool]:
        """Which keys are held, without reading them. One call for a whole prefix chain. touch marks
        those held as used now. Raises TierError when the tier cannot be asked."""
        ...

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        """One outcome per key, in order, lazily: a tier may have several reads in flight (its
        window) ahead of what was taken. Each value is whole, as it was written, in a buffer of its
        own from `room`; or, where the room knows where it is wanted (tiers/landing.py) and the
        tier makes use of that, there. Marks as used. Never verified here. Other calls may come
        before the last value is taken. Raises TierError when the tier fails (deadline included);
        closing the iterator abandons what is in flight."""
        ...

    def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
        """Store the concatenation of the parts as one atomic value: visible complete or not at
        all, also after a crash. Overwriting is allowed (same key, same content). False: refused,
        nothing changed (over budget even after eviction). Raises TierError (full, read-only)."""
        ...

    def remove(self, keys: Sequence[ChunkKey], *, quarantine: bool = False) -> int:
        """Forget keys; returns how many were held. quarantine keeps the bytes aside for diagnosis
        where the tier can, under the same budget."""
        ...

    def scan(self) -> Iterator[ChunkEntry]:
        """All chunks held, by looking at the medium and not at an index."""
        ...

    def usage(self) -> TierUsage: ...


@runtime_checkable
class Tidy(Protocol):
    """A tier that may leave debris behind: half-written values of dead writers, quarantine."""

    def tidy(self, older_than_s: float) -> int:
        """Remove debris of dead writers, and quarantined values older than this; returns how many
        things went. Raises TierError."""
        ...


class Gone(IntEnum):
    """Why a chunk is not held any more."""

    EVICTED = 1  # room was short
    EXPIRED = 2  # its time in the tier was over
    REMOVED = 3  # by who looks after the tier
    SET_ASIDE = 4  # it was no chunk, or a bad one


@runtime_checkable
class Weighs(Protocol):
    """A tier that keeps what saves most for its bytes when room is short."""

    def used(self, saved: Mapping[ChunkKey, float]) -> None:
        """A use of these chunks saves so many seconds a byte, be they held or about to be written.
        No chunk of a prefix may be said to save less than those after it. Raises TierError."""
        ...


@runtime_checkable
class Recalls(Protocol):
    """A tier that knows something of what it does not hold any more."""

    def left(
        self, keys: Sequence[ChunkKey], *, since: float = 0.0, look: bool = False
    ) -> dict[ChunkKey, Gone]:
        """Why chunks went that are not held now, as far as that is known; since: when they were
        used last, as far as the asker knows. Asks nobody, unless told to look. Raises TierError."""
        ...


@runtime_checkable
class Drops(Protocol):
    """A tier whose chunks may go on to the next one when they go."""

    def fallen(self) -> list[tuple[ChunkKey, memoryview]]:
        """Values that were evicted since this was asked last, and had been used again since they
        were written; they are the caller's now."""
        ...
