"""News of a step, by job."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from preread.backend import Ragged
from preread.tokens.batch import CANCELLED, ERROR, News
from preread.tokens.ragged import joined

if TYPE_CHECKING:
    from preread.types import Int64Array


class Ledger:
    """Collects news until somebody takes them."""

    def __init__(self) -> None:
        self._parts: dict[int, list[News]] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    def put(self, job: int, news: News) -> None:
        self._parts.setdefault(job, []).append(news)

    def fail(self, job: int, rows: Int64Array, message: str) -> None:
        """Rows that did not run and never will."""
        self.put(job, _ended(rows, ERROR, dict.fromkeys(rows.tolist(), message)))

    def cancel(self, job: int, rows: Int64Array) -> None:
        """See fail."""
        self.put(job, _ended(rows, CANCELLED, {}))

    def take(self) -> dict[int, News]:
        """Everything since the last call."""
        parts, self._parts = self._parts, {}
        return {job: _joined(news) for job, news in parts.items()}


def _ended(rows: Int64Array, code: int, errors: dict[int, str]) -> News:
    n = len(rows)
    return News(
        rows=rows.astype(np.int32),
        tokens=Ragged(np.empty(0, np.int32), np.zeros(n + 1, np.int64)),
        logprobs=np.empty(0, np.float32),
        finish=np.full(n, code, np.int8),
        usage=np.zeros((n, 4), np.int32),
        age=np.zeros(n, np.float32),
        scores=np.zeros((n, 0), np.float32),
        agree=np.zeros(n, bool),
        errors=errors,
    )


def _joined(parts: list[News]) -> News:
    if len(parts) == 1:
        return parts[0]
    width = max(p.scores.shape[1] for p in parts)
    columns = {
        f.name: np.concatenate([getattr(p, f.name) for p in parts])
        for f in fields(News)
        if f.name not in ("tokens", "scores", "errors")
    }
    tokens = joined([p.tokens for p in parts])
    scores = [np.pad(p.scores, ((0, 0), (0, width - p.scores.shape[1]))) for p in parts]
    errors = {row: text for p in parts for row, text in p.errors.items()}
    return News(tokens=tokens, scores=np.concatenate(scores), errors=errors, **columns)
