"""All news about a batch as one: an entry per row, in the order of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from preread.backend import Ragged, ResultBatch
from preread.tokens.ragged import joined, lengths, picked, ranges

if TYPE_CHECKING:
    from preread.types import Float32Array, Int32Array, Int64Array


def merged(parts: Sequence[ResultBatch], n: int) -> ResultBatch:
    """What `parts` say of rows 0 to n - 1: texts, tokens and log-probabilities joined, the rest as
    it was last. A row of which nothing was said has no finish, like one that never ended."""
    said = [_silence(n), *parts]
    rows = np.concatenate([part.rows for part in said])
    order = np.argsort(rows, kind="stable")  # a row's news in the order in which they came
    cuts = np.searchsorted(rows[order], np.arange(n + 1))
    last = order[cuts[1:] - 1]
    tokens = joined([part.tokens for part in said])
    sizes = lengths(tokens)[order]
    places, ends = ranges(tokens.offsets[order], sizes), np.concatenate(([0], np.cumsum(sizes)))
    texts = [text for part in said for text in part.texts]
    finish = [code for part in said for code in part.finish]
    greedy = [flag for part in parts for flag in part.is_greedy or ()]
    logprobs = _column([part.logprobs for part in parts], 0)
    labels = _column([part.label_probs for part in parts], n)
    mass = _column([part.mass for part in parts], n)
    written = None
    if any(part.written is not None for part in said):
        none = [np.zeros(len(part.rows), np.int32) for part in said]
        given = [
            zeros if p.written is None else p.written for p, zeros in zip(said, none, strict=True)
        ]
        written = np.concatenate(given)[last]
    by_row = pairwise(cuts.tolist())
    return ResultBatch(
        rows=np.arange(n, dtype=np.int32),
        texts=["".join([texts[i] for i in order[a + 1 : b].tolist()]) for a, b in by_row],
        tokens=Ragged(tokens.values[places], ends[cuts]),
        finish=[finish[i] for i in last.tolist()],
        usage=np.concatenate([part.usage for part in said])[last],
        times=np.concatenate([part.times for part in said])[last],
        logprobs=None if logprobs is None else logprobs[places],
        label_probs=None if labels is None else labels[last],
        mass=None if mass is None else mass[last],
        is_greedy=[i >= n and greedy[i - n] for i in last.tolist()] if greedy else None,
        errors={row: text for part in parts for row, text in part.errors.items()},
        brought={row: load for part in parts for row, load in part.brought.items()},
        written=written,
        responses={row: how for part in parts for row, how in part.responses.items()},
    )


def only(news: ResultBatch, which: Int64Array, rows: Int32Array) -> ResultBatch:
    """The entries `which`, in that order, as news of other row numbers."""
    at, number = which.tolist(), rows.tolist()
    old = news.rows[which].tolist()
    values = ranges(news.tokens.offsets[which], lengths(news.tokens)[which])
    return ResultBatch(
        rows=rows.astype(np.int32),
        texts=[news.texts[i] for i in at],
        tokens=picked(news.tokens, which),
        finish=[news.finish[i] for i in at],
        usage=news.usage[which],
        times=news.times[which],
        logprobs=None if news.logprobs is None else news.logprobs[values],
        label_probs=None if news.label_probs is None else news.label_probs[which],
        mass=None if news.mass is None else news.mass[which],
        is_greedy=None if news.is_greedy is None else [news.is_greedy[i] for i in at],
        errors={
            new: news.errors[i] for i, new in zip(old, number, strict=True) if i in news.errors
        },
        brought={
            new: news.brought[i] for i, new in zip(old, number, strict=True) if i in news.brought
        },
        written=None if news.written is None else news.written[which],
        responses={
            new: news.responses[i]
            for i, new in zip(old, number, strict=True)
            if i in news.responses
        },
    )


def _silence(n: int) -> ResultBatch:
    """Nothing of every row."""
    return ResultBatch(
        rows=np.arange(n, dtype=np.int32),
        texts=[""] * n,
        tokens=Ragged(np.empty(0, np.int32), np.zeros(n + 1, np.int64)),
        finish=[None] * n,
        usage=np.zeros((n, 4), np.int32),
        times=np.zeros((n, 3), np.float32),
    )


def _column(parts: Sequence[Float32Array | None], silent: int) -> Float32Array | None:
    """An optional column behind as many zeros; None if nobody has it."""
    given = [part for part in parts if part is not None]
    if not given:
        return None
    zeros = np.zeros((silent, *given[0].shape[1:]), np.float32)
    return np.concatenate([zeros, *given])
