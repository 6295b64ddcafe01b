"""A batch's columns back into rows: the per-request view of a columnar stream."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, cast

from preread.backend import Backend, RequestBatch, ResultBatch
from preread.types import Completion, Finish, Likelihood, Timing, Usage

if TYPE_CHECKING:
    from preread.types import Brought, CachedResponse, Float32Array

ASIDE = 1024  # rows from which putting them in order would hold up the event loop


@dataclass(slots=True)
class Row:
    """What is known of one row so far; finish None: it still runs."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None
    usage: Usage = field(default_factory=Usage)
    timing: Timing = field(default_factory=Timing)
    label_probs: tuple[float, ...] = ()
    mass: float = 0.0
    is_greedy: bool = False
    error: str = ""
    response: CachedResponse | None = None

    def completion(self) -> Completion:
        """The row as a result. A row the backend never ended is an error of its own."""
        return Completion(
            text=self.text,
            tokens=tuple(self.tokens),
            finish_reason=self.finish or Finish.ERROR,
            usage=self.usage,
            timing=self.timing,
            logprobs=tuple(self.logprobs),
            error=self.error or ("" if self.finish else "The backend left this request open."),
            cached_response=self.response,
        )

    def likelihood(self) -> Likelihood:
        """The row of a LogLikelihood batch as a result."""
        end = self.completion()
        return Likelihood(
            logprob=math.fsum(self.logprobs) if not end.error else math.nan,
            logprobs=tuple(self.logprobs),
            tokens=tuple(self.tokens),
            is_greedy=self.is_greedy,
            usage=self.usage,
            timing=self.timing,
            error=end.error,
            cached_response=self.response,
        )


async def follow(
    backend: Backend, batch: RequestBatch, rows: list[Row]
) -> AsyncGenerator[str, None]:
    """Run a batch into `rows` (one per request, in order); yields the new text of row 0, for
    streams of one. Leaving early cancels what still runs."""
    source = cast("AsyncGenerator[ResultBatch, None]", backend.submit(batch))
    async with aclosing(source):
        async for news in source:
            for j, index in enumerate(news.rows.tolist()):
                _take(rows[index], news, j)
                if index == 0 and news.texts[j]:
                    yield news.texts[j]


async def gather(backend: Backend, batch: RequestBatch) -> ResultBatch:
    """Run a batch to its end: all columns, in the order of the requests. Raises RequestError for a
    malformed batch; a failed row is a row."""
    from preread.tokens.merged import merged

    source = cast("AsyncGenerator[ResultBatch, None]", backend.submit(replace(batch, stream=False)))
    async with aclosing(source):
        parts = [news async for news in source]
    if len(batch) < ASIDE:
        return merged(parts, len(batch))
    return await asyncio.to_thread(merged, parts, len(batch))


async def collect(backend: Backend, batch: RequestBatch) -> list[Row]:
    """The same, row by row."""
    return as_rows(await gather(backend, batch))


def as_rows(whole: ResultBatch, start: int = 0, stop: int | None = None) -> list[Row]:
    """Rows [start, stop) of all columns."""
    at = slice(start, len(whole.rows) if stop is None else stop)
    n, first = at.stop - start, int(whole.tokens.offsets[start])
    cuts = (whole.tokens.offsets[start : at.stop + 1] - first).tolist()
    out = slice(first, first + cuts[-1])
    values = whole.tokens.values[out].tolist()
    logprobs = [] if whole.logprobs is None else whole.logprobs[out].tolist()
    labels = [()] * n if whole.label_probs is None else whole.label_probs[at].tolist()
    mass = [0.0] * n if whole.mass is None else whole.mass[at].tolist()
    greedy = [False] * n if whole.is_greedy is None else whole.is_greedy[at]
    columns = (
        whole.texts[at], pairwise(cuts), whole.finish[at], whole.usage[at].tolist(),
        whole.times[at].tolist(), labels, mass, greedy, range(start, at.stop),
    )  # fmt: skip
    return [
        Row(
            text, values[a:b], logprobs[a:b], finish, Usage(*usage),
            _timing(times, whole.brought.get(i)), tuple(probs), held, best,
            whole.errors.get(i, ""), whole.responses.get(i),
        )
        for text, (a, b), finish, usage, times, probs, held, best, i in zip(*columns, strict=True)
    ]  # fmt: skip


def _take(row: Row, news: ResultBatch, j: int) -> None:
    start, end = int(news.tokens.offsets[j]), int(news.tokens.offsets[j + 1])
    row.text += news.texts[j]
    row.tokens += news.tokens.values[start:end].tolist()
    if news.logprobs is not None:
        row.logprobs += news.logprobs[start:end].tolist()
    row.finish = news.finish[j]
    if row.finish is None:
        return
    row.usage = Usage(*news.usage[j].tolist())
    row.timing = _timing(news.times[j].tolist(), news.brought.get(int(news.rows[j])))
    row.error = news.errors.get(int(news.rows[j]), "")
    row.response = news.responses.get(int(news.rows[j]))
    row.label_probs = _floats(news.label_probs, j)
    row.mass = float(news.mass[j]) if news.mass is not None else 0.0
    row.is_greedy = bool(news.is_greedy[j]) if news.is_greedy is not None else False


def _timing(times: list[float], brought: Brought | None) -> Timing:
    load, ttft, total = times
    return Timing(load_ms=load, ttft_ms=ttft, total_ms=total, brought=brought)


def _floats(values: Float32Array | None, j: int) -> tuple[float, ...]:
    return () if values is None else tuple(values[j].tolist())
