"""News of a step, by job."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from preread.tokens.batch import CANCELLED, ERROR, News

if TYPE_CHECKING:
    from preread.types import Int32Array, Int64Array


class Ledger:
    """Collects news until somebody takes them."""

    def __init__(self) -> None:
        self._parts: dict[int, list[News]] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    def put(self, job: int, news: News) -> None:
        self._parts.setdefault(job, []).append(news)

    def fail(
        self, job: int, rows: Int64Array, message: str, usage: Int32Array | None = None
    ) -> None:
        """usage: of rows that ran; those that did not used nothing."""
        self.put(job, _ended(rows, ERROR, usage, dict.fromkeys(rows.tolist(), message)))

    def cancel(self, job: int, rows: Int64Array, usage: Int32Array | None = None) -> None:
        """See fail."""
        self.put(job, _ended(rows, CANCELLED, usage, {}))

    def take(self) -> dict[int, News]:
        """Everything since the last call."""
        parts, self._parts = self._parts, {}
        return {job: _joined(news) for job, news in parts.items()}


def _ended(rows: Int64Array, code: int, usage: Int32Array | None, errors: dict[int, str]) -> News:
    n = len(rows)
    return News(
        rows=rows.astype(np.int32),
        tokens=np.full(n, -1, np.int32),
        logprobs=np.zeros(n, np.float32),
        finish=np.full(n, code, np.int8),
        usage=np.zeros((n, 4), np.int32) if usage is None else usage,
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
        if f.name not in ("scores", "errors")
    }
    scores = [np.pad(p.scores, ((0, 0), (0, width - p.scores.shape[1]))) for p in parts]
    errors = {row: text for p in parts for row, text in p.errors.items()}
    return News(scores=np.concatenate(scores), errors=errors, **columns)
