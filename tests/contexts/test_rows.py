"""Columns back into rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from preread.backend import Generate, Ragged, RequestBatch, ResultBatch
from preread.contexts.rows import collect, follow
from preread.testing.backend import FakeBackend
from preread.types import Finish, Timing, Usage


def news(rows: list[int], texts: list[str], finish: list[Finish | None]) -> ResultBatch:
    n = len(rows)
    return ResultBatch(
        rows=np.array(rows, np.int32),
        texts=texts,
        tokens=Ragged(np.array(rows, np.int32), np.arange(n + 1, dtype=np.int64)),
        finish=finish,
        usage=np.tile(np.array([5, 4, 3, 2], np.int32), (n, 1)),
        times=np.tile(np.array([1, 2, 3], np.float32), (n, 1)),
        logprobs=np.full(n, -0.5, np.float32),
    )


class Scripted(FakeBackend):
    """Gives out prepared news."""

    def __init__(self, *batches: ResultBatch) -> None:
        super().__init__()
        self._batches = batches

    def submit(self, batch: RequestBatch) -> Any:
        async def run() -> AsyncIterator[ResultBatch]:
            for item in self._batches:
                yield item

        return run()


BATCH = RequestBatch(Generate(), ["a", "b"])


async def test_rows_come_together_in_any_order() -> None:
    backend = Scripted(
        news([1], ["one "], [None]),
        news([1, 0], ["two", "zero"], [Finish.LENGTH, None]),
        news([0], ["!"], [Finish.STOP]),
    )
    first, second = await collect(backend, BATCH)
    assert (first.text, first.tokens, first.finish) == ("zero!", [0, 0], Finish.STOP)
    assert (second.text, second.tokens, second.finish) == ("one two", [1, 1], Finish.LENGTH)
    assert first.usage == Usage(5, 4, 3, 2) and first.timing == Timing(1, 2, 3)
    assert second.completion().logprobs == (-0.5, -0.5)


async def test_following_yields_the_first_rows_text() -> None:
    backend = Scripted(news([0, 1], ["a", "x"], [None, None]), news([0], [""], [Finish.STOP]))
    rows = [*await collect(FakeBackend(), RequestBatch(Generate(), ["q", "q"]))]
    assert [text async for text in follow(backend, BATCH, rows)] == ["a"]


async def test_a_row_that_never_ended_is_an_error() -> None:
    first, second = await collect(Scripted(news([0], ["a"], [Finish.STOP])), BATCH)
    assert first.completion().error == ""
    assert second.completion().finish_reason is Finish.ERROR
    assert "left this request open" in second.completion().error


@pytest.mark.parametrize("count", [1, 3])
async def test_failed_rows_bring_their_message(count: int) -> None:
    def fail(_prefix: object, question: str) -> str:
        raise ValueError(question)

    batch = RequestBatch(Generate(), [f"q{n}" for n in range(count)])
    rows = await collect(FakeBackend(fail), batch)
    assert [row.completion().error for row in rows] == [f"ValueError: q{n}" for n in range(count)]
