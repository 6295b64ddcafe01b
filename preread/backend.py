"""The waist between who asks and who computes.

Above it (contexts, batch, pipeline, server) nobody can tell the local engine from vLLM, Ollama or a
cluster; below it nobody knows what a document is. It is columnar: a batch is arrays and result
batches are arrays, so that 170,000 requests are not 170,000 futures. Prefixes travel by content:
there is no handle that can go stale, and a backend that has lost a prefix reads it again.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from preread.errors import RequestError
from preread.prices import Prices
from preread.types import GREEDY, Brought, Built, CachedResponse, Finish, Prefix, Sampling

if TYPE_CHECKING:
    from preread.types import Float32Array, Int32Array, Int64Array


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a backend is. Limits in tokens, prompt and output together.

    effective_limit: how far the model is known to read well (<= limit); effective_known: False when
    nobody measured it and the limit itself is repeated. prices: None where nothing is paid.
    min_prefix: shortest beginning that is ever reused. exact_counts: False where `count` can only
    estimate, because the tokenizer is somebody else's.
    """

    name: str  # "local", "openai", …
    model: str  # as given by the user: hub id, folder or "reader"
    fingerprint: str
    limit: int
    effective_limit: int
    effective_known: bool
    kv_bytes_per_token: int
    device: str
    dtype: str
    prices: Prices | None = None
    min_prefix: int = 0
    exact_counts: bool = True


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of unequal length in one array: row i is values[offsets[i]:offsets[i+1]]. offsets has
    n + 1 entries and starts at 0."""

    values: Int32Array
    offsets: Int64Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> Int32Array:
        return self.values[self.offsets[i] : self.offsets[i + 1]]


@dataclass(frozen=True, slots=True)
class Generate:
    """Write up to max_tokens. schema: JSON schema the output must satisfy (grammar-constrained)."""

    max_tokens: int = 256
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    ignore_eos: bool = False
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Choose:
    """One forward; probabilities over labels as the beginning of the answer. Nothing is decoded."""

    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogLikelihood:
    """log P of one given continuation per row. Nothing is decoded."""

    continuations: Sequence[str] | Ragged


Work = Generate | Choose | LogLikelihood


class Leaving:
    """Rows of a batch that nobody waits for any more, told to the backend that runs them. One that
    does not listen runs them to their end. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: list[int] = []
        self._tell: Callable[[int], None] | None = None
        self._withdraw: Callable[[], None] | None = None
        self._withdrawn = False

    def leave(self, row: int) -> None:
        with self._lock:
            tell = self._tell
            if tell is None:
                self._rows.append(row)
        if tell is not None:
            tell(row)

    def withdraw(self) -> None:
        """All rows leave whose work has not begun; what is under way ends well."""
        with self._lock:
            withdraw = None if self._withdrawn else self._withdraw
            self._withdrawn = True
        if withdraw is not None:
            withdraw()

    def listen(self, tell: Callable[[int], None], withdraw: Callable[[], None]) -> None:
        """Be told of each row from now on, and now of those that have left already; and once all
        that has not begun is withdrawn."""
        with self._lock:
            self._tell, left = tell, self._rows
            self._withdraw, withdrawn = withdraw, self._withdrawn
        for row in left:
            tell(row)
        if withdrawn:
            withdraw()


class Billed(NamedTuple):
    """Tokens that a request was billed; written are part of computed."""

    cached: int = 0
    computed: int = 0
    output: int = 0
    written: int = 0


class Attempt(Protocol):
    """One request to a server that bills it; room for it has been reserved."""

    def sent(self) -> bool:
        """Call right before it is sent: it may be billed from now on. False: it must not be."""
        ...

    def free(self) -> None:
        """It was refused, or has never arrived: nothing is billed."""
        ...

    def billed(self, counts: Billed) -> None:
        """It was answered."""
        ...

    def over(self) -> None:
        """Call in the end, whatever came of it. Sent and neither of the two: it stays in doubt."""
        ...


class Spending(Protocol):
    """Who pays for a batch, asked in the backend's event loop before each of its requests is sent
    to a server that bills them. A backend that computes itself does not ask."""

    async def attempt(self, row: int, most: tuple[int, int]) -> Attempt | None:
        """Reserve for one more request of a row, which takes (input, output) tokens at most; may
        wait for what others give back. None: there is no room and will be none: the row ends
        CANCELLED."""
        ...


@dataclass(frozen=True, slots=True)
class SpendingOf:
    """For some rows of a batch that are a batch of their own; rows: what they were there."""

    whole: Spending
    rows: Sequence[int]

    async def attempt(self, row: int, most: tuple[int, int]) -> Attempt | None:
        return await self.whole.attempt(self.rows[row], most)


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """Rows that share their options.

    prompts: with `raw` False, user turns (text) that the chat template completes; with `raw` True
    whole prompts, as text or token ids, no template. prefixes / prefix_of: prefix_of[i] indexes
    `prefixes`, -1 for none; None means -1 for all rows if there are no prefixes, else 0 for all.
    keep: leave the rows' KV (prompt and output) behind as a prefix that later prompts may continue
    (a session); otherwise a row's own KV is freed when it ends. reuse: False computes every whole
    prompt afresh, sharing nothing with memory, tiers or other rows: the slow twin, for parity
    checks and for the "in-context" arm of comparisons. stream: False when nobody reads along: a
    backend may then tell of a row once, when it ends. leaving: rows that may end early, CANCELLED.
    spending: asked before anything is sent that is billed; None: nobody counts.
    """

    work: Work
    prompts: Sequence[str] | Ragged
    prefixes: tuple[Prefix, ...] = ()
    prefix_of: Int32Array | None = None
    raw: bool = False
    keep: bool = False
    reuse: bool = True
    stream: bool = True
    leaving: Leaving | None = None
    spending: Spending | None = None

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, slots=True)
class ResultBatch:
    """News about some rows: deltas while they run, the rest when they end.

    rows[j] is a row number of the request batch. texts[j] / tokens.row(j) / logprobs are what is
    new since the last news (complete characters only). finish[j] is None while the row goes on; the
    columns below it are meaningful only for ended rows. usage: [n, 4] = context, cached, computed,
    output tokens. times: [n, 3] = load, ttft, total milliseconds. label_probs: [n, labels],
    normalised over the labels; mass: [n]. errors: row -> message (finish is ERROR). brought: row ->
    what was asked of the tiers before it could run; rows whose prefix was in memory are left out.
    written: [n], of the computed tokens those billed as cache writes; None: none of any row.
    responses: rows whose answer was kept from an earlier request; their usage is all zeros.
    """

    rows: Int32Array
    texts: list[str]
    tokens: Ragged
    finish: list[Finish | None]
    usage: Int32Array
    times: Float32Array
    logprobs: Float32Array | None = None  # aligned with tokens.values
    label_probs: Float32Array | None = None
    mass: Float32Array | None = None
    is_greedy: list[bool] | None = None  # loglikelihood: every token was the arg-max
    errors: dict[int, str] = field(default_factory=dict)
    brought: dict[int, Brought] = field(default_factory=dict)
    written: Int32Array | None = None
    responses: dict[int, CachedResponse] = field(default_factory=dict)


def no_blends(who: str) -> RequestError:
    """What a backend raises for a prefix with a blend that it cannot put together: it must not
    answer as if nobody had asked for that."""
    return RequestError(
        f"{who} puts no prefixes together from parts.", hint="Use the exact composition."
    )


Progress = Callable[[int, int], None]  # (tokens ready, tokens in all), called from any thread


@runtime_checkable
class Backend(Protocol):
    """Who computes. All methods may be called from any task of one event loop."""

    @property
    def info(self) -> BackendInfo: ...

    async def count(self, prefixes: Sequence[Prefix], questions: Sequence[str] = ()) -> list[int]:
        """Prompt tokens of each prefix as the template lays it out (questions empty), or of
        prefixes[i] followed by the user turn questions[i]. Reads nothing."""
        ...

    async def build(
        self, prefix: Prefix, *, lease_s: float = 0.0, progress: Progress | None = None
    ) -> Built:
        """Make a prefix ready: find it in memory, load it from a tier, compute the rest, store what
        was computed. Idempotent; concurrent calls for one prefix do the work once. The prefix stays
        resident for at least lease_s after its last use, within the memory budget. Of a prefix with
        a blend nothing but its parts is stored.
        Raises ContextTooLong, OutOfMemory; RequestError for a blend where there are none."""
        ...

    async def forget(self, prefixes: Sequence[Prefix]) -> None:
        """Free the memory of these prefixes and of what continues them, at once or as soon as
        nothing runs on it; what others begin with stays. Tiers are left alone. Costs time at most:
        a prefix that is wanted again is loaded or read again."""
        ...

    def submit(self, batch: RequestBatch) -> AsyncIterator[ResultBatch]:
        """Run a batch. Every row gets exactly one ended entry; one row's failure is its own (finish
        ERROR and a message). Closing the iterator cancels the rows still running. Malformed batches
        raise RequestError before anything is computed."""
        ...

    async def close(self) -> None:
        """Stop and free; running rows end CANCELLED. Idempotent."""
        ...
