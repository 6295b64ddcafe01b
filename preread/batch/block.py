"""Requests of a run that are in flight together, and what came of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from preread.backend import Billed, Leaving, ResultBatch
from preread.batch.budget import NONE, Reserved
from preread.batch.ledger import Bills
from preread.batch.schema import Result, Waiting
from preread.types import Finish


@dataclass(slots=True, eq=False)
class Block:
    """open: of each row that has not ended the text so far. leaving: tells the backend that what
    has not begun shall wait. bills: what the rows' requests may be billed."""

    rows: list[Waiting]
    bills: Bills
    leaving: Leaving = field(default_factory=Leaving)
    reserved: Reserved = NONE
    open: dict[int, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def take(self, news: ResultBatch) -> Iterator[tuple[int, Result | None]]:
        """The rows that have ended, with their results; None: nobody has run it, it goes on
        waiting."""
        n = len(news.rows)
        probs: list[bytes] | list[None] = [None] * n
        if news.label_probs is not None:
            data = np.ascontiguousarray(news.label_probs, np.float32)
            probs = [row.tobytes() for row in data]
        mass = [None] * n if news.mass is None else news.mass.tolist()
        written = [0] * n if news.written is None else news.written.tolist()
        columns = (news.rows.tolist(), news.finish, news.texts, news.usage.tolist(), written)
        for row, finish, text, usage, wrote, prob, held in zip(*columns, probs, mass, strict=True):
            text = self.open.pop(row) + text
            if finish is None:
                self.open[row] = text
            elif finish is Finish.CANCELLED:
                yield row, None
            else:
                failed = finish is Finish.ERROR
                error = news.errors.get(row, "failed without a reason") if failed else ""
                context, cached, computed, output = usage
                how = news.responses.get(row)
                yield row, Result(
                    self.rows[row].idx, finish._value_, text, context, cached, computed, output,
                    wrote, None if failed else prob, None if failed else held, error,
                    json.dumps(how._asdict(), ensure_ascii=False) if how else "",
                )  # fmt: skip

    def left(self, why: str) -> list[Result]:
        """What has not ended yet, failed."""
        ended = [
            Result(self.rows[row].idx, Finish.ERROR.value, "", 0, 0, 0, 0, 0, None, None, why)
            for row in self.open
        ]
        self.open.clear()
        return ended


def counted(result: Result | None) -> Billed:
    """By a row's result."""
    if result is None:
        return Billed()
    return Billed(result.cached, result.computed, result.output, result.written)
