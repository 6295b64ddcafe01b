"""The shared vocabulary: values that every layer may speak. Imports nothing of the package but
`blends`.

Three counts are never mixed: `cached` (KV reused), `computed` (tokens the model read now) and
`output` (tokens it wrote). "Prompt tokens" alone hides the point of the project.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NewType

from preread.blends import Approximate, Blend

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Int32Array = NDArray[np.int32]
    Int64Array = NDArray[np.int64]
    Float32Array = NDArray[np.float32]

Seconds = NewType("Seconds", float)
Milliseconds = NewType("Milliseconds", float)
Fingerprint = NewType("Fingerprint", str)  # 64 hex digits, see store/keys.py
Role = Literal["system", "user", "assistant"]
Match = Literal["exact", "fuzzy", "none"]


class Finish(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # end-of-sequence token, or a stop string
    LENGTH = "length"  # max_tokens reached; structured output is then incomplete
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `content` is foreign text: nothing in it is a special token."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prefix:
    """What is read once: the leading messages of a prompt, identified by content alone.

    system: instructions and documents. history: finished turns after it, oldest first (a session).
    blend: how its KV may be approximated; part of what it is. Hashable; two equal prefixes are the
    same prefix on every machine with the same weights.
    """

    system: str
    history: tuple[Message, ...] = ()
    blend: Blend | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. prompt length = cached + computed.

    context_tokens: length of the prefix (cached or not); cached: KV reused, from memory or a tier;
    computed: read by the model for this request; output: generated.
    """

    context_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.context_tokens + other.context_tokens,
            self.cached_tokens + other.cached_tokens,
            self.computed_tokens + other.computed_tokens,
            self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock milliseconds of one request, from submission. saved_ms: estimated time the cached
    tokens would have cost at this machine's measured prefill rate, less the time to load them.
    brought: what its context took from the tiers, None where it was in memory."""

    load_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    saved_ms: float = 0.0
    brought: Brought | None = None


@dataclass(frozen=True, slots=True)
class Citation:
    """Where an answer stands in the sources, found and checked by code. Lines count from 1."""

    source: str
    start_line: int
    end_line: int
    quote: str
    match: Match


@dataclass(frozen=True, slots=True)
class ContextRef:
    """Which context answered."""

    name: str
    version: int
    fingerprint: str


class CachedResponse(NamedTuple):
    """That a result comes from the response cache: nothing was read or computed for it. similarity:
    1 for the same request; below, that of the question it was given to, by the semantic cache;
    question: that one, "" for the same."""

    similarity: float = 1.0
    question: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """A generated answer. logprobs: natural log-probability of each token, if asked for; notes:
    what the user should know about how it came about; approximate: that it stands on KV that is
    not exact."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: Finish
    usage: Usage
    timing: Timing
    logprobs: tuple[float, ...] = ()
    citations: tuple[Citation, ...] = ()
    context: ContextRef | None = None
    unread: tuple[str, ...] = ()  # documents that no answering shard contained
    error: str = ""
    alternatives: tuple[Completion, ...] = ()  # what the other shards answered, best first
    notes: tuple[str, ...] = ()
    approximate: Approximate | None = None
    cached_response: CachedResponse | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Probabilities over given labels. probabilities sum to 1 over `labels`; `mass` is the total
    probability the model gave to all of them, so a low mass says that it meant something else;
    notes, approximate: as of a Completion."""

    label: str
    probabilities: dict[str, float]
    mass: float
    usage: Usage
    timing: Timing
    context: ContextRef | None = None
    unread: tuple[str, ...] = ()  # documents that the answering shard did not contain
    error: str = ""
    notes: tuple[str, ...] = ()
    approximate: Approximate | None = None
    cached_response: CachedResponse | None = None


@dataclass(frozen=True, slots=True)
class Likelihood:
    """log P(continuation | prompt). logprobs: natural log per continuation token; is_greedy: every
    token was the most likely one."""

    logprob: float
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    is_greedy: bool
    usage: Usage
    timing: Timing
    error: str = ""
    cached_response: CachedResponse | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; top_k 0 and top_p 1 are off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


GREEDY = Sampling()


class Served(NamedTuple):
    """What one tier gave: chunks, their payload bytes, the tokens of the spans they completed, and
    the time spent on them in milliseconds, verifying and the sink included."""

    tier: str
    chunks: int
    tokens: int
    nbytes: int
    ms: float

    def plus(self, more: Served) -> Served:
        """Both loads from this tier."""
        counts = self.chunks + more.chunks, self.tokens + more.tokens, self.nbytes + more.nbytes
        return Served(self.tier, *counts, self.ms + more.ms)


class Brought(NamedTuple):
    """What came from the tiers for one prefix. tokens: that were not in memory before; ms: wall
    time, predicted_ms as it was foreseen; served: by tier; miss, at: why it is not the whole
    prefix ("" where it is, else a value of store.reports.Miss), and the token where it ends;
    computed: tokens of it that were computed while the others came; by_layer: the first tokens
    behind it were computed while its last layers came."""

    tokens: int = 0
    ms: float = 0.0
    predicted_ms: float = 0.0
    served: tuple[Served, ...] = ()
    miss: str = ""
    at: int = 0
    computed: int = 0
    by_layer: bool = False

    def to_json(self) -> dict[str, Any]:
        """As `build --json` and `warm --json` say it."""
        times = {"ms": round(self.ms, 3), "predicted_ms": round(self.predicted_ms, 3)}
        tiers = [row._asdict() | {"ms": round(row.ms, 3)} for row in self.served]
        counts = {"tokens": self.tokens, "computed_meanwhile": self.computed}
        why = {"miss": self.miss, "at": self.at}
        return {**counts, **times, "by_layer": self.by_layer, "tiers": tiers, **why}

    def plus(self, other: Brought) -> Brought:
        """Both as one; of what they lack the first."""
        rows: dict[str, Served] = {}
        for row in (*self.served, *other.served):
            rows[row.tier] = rows[row.tier].plus(row) if row.tier in rows else row
        lacking = self if self.miss else other
        return Brought(
            self.tokens + other.tokens,
            self.ms + other.ms,
            self.predicted_ms + other.predicted_ms,
            tuple(rows.values()),
            lacking.miss,
            lacking.at,
            self.computed + other.computed,
            self.by_layer or other.by_layer,
        )


@dataclass(frozen=True, slots=True)
class Built:
    """Report of making a prefix ready. tokens = reused_tokens + computed_tokens."""

    tokens: int
    reused_tokens: int  # KV found in memory or a tier
    loaded_tokens: int  # of those, read from a tier
    computed_tokens: int
    kv_bytes: int
    load_ms: float
    seconds: float
    chunk_keys: tuple[str, ...] = field(default=(), repr=False)  # hex; what gc must keep
    stored: bool = True  # False: some tier refused (full, read-only); the reason is logged
    brought: Brought = field(default_factory=Brought)


def summed(built: Iterable[Built]) -> Built:
    """Several reports as one."""
    parts = list(built)
    return Built(
        tokens=sum(b.tokens for b in parts),
        reused_tokens=sum(b.reused_tokens for b in parts),
        loaded_tokens=sum(b.loaded_tokens for b in parts),
        computed_tokens=sum(b.computed_tokens for b in parts),
        kv_bytes=sum(b.kv_bytes for b in parts),
        load_ms=sum(b.load_ms for b in parts),
        seconds=sum(b.seconds for b in parts),
        stored=all(b.stored for b in parts),
        brought=reduce(Brought.plus, (b.brought for b in parts), Brought()),
    )
