"""The catalog contract: the one authority on names. Compare-and-swap of name -> version.

A record is immutable; a new version is a new record. Messages between processes are hints, the
catalog is the truth: who is told that something changed, or was told nothing for a while, asks
where what it holds stands (`standing`, `epochs`). So a lost message changes nothing.
`preread.testing.conformance_catalog` is the suite that every catalog passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One document of a context, kept whole so that an answer can be traced and a lost KV read
    again even when the file has gone. path: as shown in citations, relative where possible;
    origin: absolute path it was read from, "" for standard input; digest: SHA-256 of the file's
    bytes; text: exactly what the model read, lines separated by LF; line_map: for each line of
    `text`, its line in the file (1-based), or () when text and file have the same lines."""

    path: str
    origin: str
    digest: str
    text: str
    line_map: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of one source: `source` is its index in the record, [start, end) are character
    offsets of its text."""

    source: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One prefix of a context. system: the whole text of the leading message (see
    contexts/layout.py); sources: indexes into the record's sources; tokens: of the prefix;
    chunk_keys: hex keys of its chunks (what gc keeps); parts: which stretches of the sources it
    holds, in order."""

    system: str
    sources: tuple[int, ...]
    tokens: int
    kv_bytes: int
    chunk_keys: tuple[str, ...]
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbeddingRecord:
    """Vectors of the sections that routing ranks, computed once at build. vectors: float32 little
    endian, unit length, [sections, dim]; embedder: the name of what made them, never mixed."""

    embedder: str
    dim: int
    sections: tuple[Part, ...]
    vectors: bytes


@dataclass(frozen=True, slots=True)
class ContextRecord:
    """One version of a named context. Times are seconds since the epoch (UTC)."""

    name: str
    version: int
    model: str  # as given: "reader", hub id or folder
    fingerprint: str
    instructions: str
    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]
    created_at: float
    expires_at: float | None  # from creation; a hit never extends it
    patterns: tuple[str, ...]  # the PATH arguments of the build, absolute
    dtype: str = ""
    invalidated: str = ""  # reason, "" while valid
    embedding: EmbeddingRecord | None = None
    prefill_tok_s: float = 0.0  # measured when it was computed; 0: not known
    epochs: int = 0  # of its owner and its model together; either one's bump voids its KV
    codec: str = "raw"  # in which its KV is kept

    @property
    def tokens(self) -> int:
        return sum(s.tokens for s in self.shards)

    @property
    def chunk_keys(self) -> list[str]:
        """Hex keys of the chunks of all shards."""
        return [key for shard in self.shards for key in shard.chunk_keys]


@dataclass(frozen=True, slots=True)
class ContextSummary:
    """What `list` shows, read without the texts."""

    name: str
    version: int
    model: str
    fingerprint: str
    tokens: int
    shards: int
    sources: int
    kv_bytes: int
    created_at: float
    expires_at: float | None
    last_used: float
    invalidated: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one version of a name stands now. newest: the newest version of the name, 0 when there
    is no such name; invalidated: why this version was, "" while it is valid or not kept."""

    newest: int
    invalidated: str = ""


class Hints(Protocol):
    """Messages that something may have changed. They may be lost, late or about nothing."""

    def wait(self, seconds: float) -> None:
        """Return at the next message, after so many seconds at the latest; at once when closed.
        Raises nothing: who cannot be reached sends no messages."""
        ...

    def close(self) -> None:
        """End every wait, from any thread. Idempotent."""
        ...


@runtime_checkable
class Catalog(Protocol):
    """Names, versions, expiry, epochs. Sync, thread-safe, shared by processes. Raises HomeError
    when the medium cannot be used, UsageError for text that is not valid Unicode."""

    def get(self, name: str, version: int | None = None) -> ContextRecord | None:
        """A version, or the newest (also when it is expired or invalidated: the caller decides)."""
        ...

    def put(self, record: ContextRecord, *, expected: int) -> None:
        """Publish record.version = expected + 1 if the newest version of the name is `expected`
        (0: the name must be new). Raises CatalogConflict when somebody else was first."""
        ...

    def invalidate(self, name: str, reason: str) -> bool:
        """Mark the newest version: it is rebuilt before its next use. False: no such name."""
        ...

    def standing(self, held: Sequence[tuple[str, int]]) -> list[Standing]:
        """Where these versions (name, version) stand, in their order. Cheap: no texts are read."""
        ...

    def remove(self, name: str, *, below: int | None = None) -> int:
        """Forget a name (or its versions below `below`); returns how many versions went."""
        ...

    def summaries(self) -> list[ContextSummary]:
        """The newest version of every name, by name."""
        ...

    def touch(self, name: str, when: float) -> None:
        """Remember the last use (eviction order only; never extends an expiry)."""
        ...

    def live_chunks(self, now: float = 0.0) -> frozenset[str]:
        """Hex keys of the chunks of all kept versions that may still answer: neither invalidated
        nor expired at `now`."""
        ...

    def sessions(self, name: str) -> Sequence[str]:
        """Names of the sessions kept on a context."""
        ...

    def session(self, context: str, session: str) -> tuple[tuple[str, str], ...]:
        """(question, answer) turns, oldest first; () if there is none."""
        ...

    def append_turn(self, context: str, session: str, turn: tuple[str, str], *, at: int) -> None:
        """Add turn number `at` (0-based). Raises CatalogConflict if the session has grown or the
        context is gone."""
        ...

    def epochs(self, scopes: Sequence[str]) -> list[int]:
        """How often everything of each scope was erased: 0 when never. Which scopes there are:
        catalog/scopes.py; the numbers go into the keys of chunks (see store/keys.py)."""
        ...

    def bump(self, scope: str) -> int:
        """Erase everything of a scope in O(1): raises its epoch by one, after which no older chunk
        can be found; returns the new epoch."""
        ...

    def listen(self) -> Hints:
        """Messages about changes by anybody, from now on; to be closed. Never waits."""
        ...
