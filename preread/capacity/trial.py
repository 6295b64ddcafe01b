"""Some sequences at once on one context, timed: what tuning and the table of sequences stand on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from preread.backend import Backend, Generate, Ragged, RequestBatch, ResultBatch
from preread.capacity.roofline import Load
from preread.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from preread.types import Int32Array

AHEAD = 97  # an odd stride: no two questions of a trial are equal


@dataclass(frozen=True, slots=True)
class Sample:
    """`sequences` requests that came at once. seconds: until the last had its answer; the rest are
    medians (p95: of 95 in 100) over the requests, in seconds and tokens. strained: memory ran out
    on the way, so that rows were taken back or steps made smaller. peak: most bytes beyond what was
    taken before."""

    sequences: int
    seconds: float
    first_token_s: float
    request_s: float
    request_p95_s: float
    computed_tokens: int
    output_tokens: int
    strained: bool = False
    peak: int = 0

    @property
    def requests_per_s(self) -> float:
        return self.sequences / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return self.output_tokens * self.requests_per_s

    def to_json(self) -> dict[str, Any]:
        return {
            "sequences": self.sequences,
            "requests_per_min": 60 * self.requests_per_s,
            "tokens_per_s": self.tokens_per_s,
            "first_token_s": self.first_token_s,
            "request_s": self.request_s,
            "request_p95_s": self.request_p95_s,
            "computed_tokens": self.computed_tokens,
            "strained": self.strained,
            "peak_bytes": self.peak,
        }


def context_tokens(load: Load, vocab: int) -> Int32Array:
    """Token ids [context] of a made-up context; the same in every call."""
    import numpy as np

    return np.random.default_rng(0).integers(0, vocab, load.context, np.int32)


def questions(load: Load, vocab: int, count: int, seed: int) -> Ragged:
    """`count` prompts: the context, then `question` tokens that no other prompt of this seed has in
    this order from the first one on."""
    import numpy as np

    head = context_tokens(load, vocab)
    own = np.random.default_rng(seed).integers(0, vocab, (count, load.question), np.int32)
    own[:, 0] = (seed + AHEAD * np.arange(count)) % vocab
    rows = np.hstack((np.broadcast_to(head, (count, len(head))), own))
    return Ragged(rows.ravel(), np.arange(count + 1, dtype=np.int64) * rows.shape[1])


async def run_trial(
    backend: Backend,
    prompts: Ragged,
    output: int,
    *,
    used: Callable[[], int] = lambda: 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Sample:
    """Submit all prompts at once and wait for their last token. used: bytes taken now, asked after
    every step. Raises EngineError with the message of a row that failed."""
    work = Generate(max_tokens=output, ignore_eos=True)
    batch = RequestBatch(work, prompts, raw=True)
    before, peak, ended = used(), 0, []
    started = clock()
    source = cast("AsyncGenerator[ResultBatch, None]", backend.submit(batch))
    async for news in source:
        peak = max(peak, used() - before)
        ended.append(_ended(news))
        for message in news.errors.values():
            await source.aclose()
            raise EngineError(f"A request of the trial failed: {message}")
    return _sample(len(prompts), clock() - started, ended, peak)


def _ended(news: ResultBatch) -> list[tuple[float, float, int, int]]:
    """(first token ms, all ms, tokens computed, tokens written) of the rows that ended."""
    out = []
    for j, finish in enumerate(news.finish):
        if finish is not None:
            _, first, total = news.times[j].tolist()
            _, _, computed, output = news.usage[j].tolist()
            out.append((first, total, computed, output))
    return out


def _sample(
    sequences: int, seconds: float, ended: list[list[tuple[float, float, int, int]]], peak: int
) -> Sample:
    import numpy as np

    columns = np.array([row for rows in ended for row in rows], np.float64).T
    first, total, computed, output = columns
    return Sample(
        sequences=sequences,
        seconds=seconds,
        first_token_s=float(np.median(first)) / 1000,
        request_s=float(np.median(total)) / 1000,
        request_p95_s=float(np.percentile(total, 95)) / 1000,
        computed_tokens=int(np.median(computed)),
        output_tokens=int(np.median(output)),
        peak=peak,
    )
