"""A budget is never exceeded, and hardly left unused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from preread.backend import RequestBatch, ResultBatch
from preread.batch.budget import Budget
from preread.batch.job import begin, priced, tallied
from preread.batch.journal import Journal
from preread.batch.run import Runner, Stop
from preread.batch.tally import Tally
from preread.prices import Prices
from preread.testing.backend import FakeBackend
from preread.testing.instant import InstantBackend
from preread.types import Finish

from .made import RUBRIC, batch_table, chat, written

PRICES = Prices(computed=1.0, cached=0.1, written=1.25, output=4.0)
ROWS = 3000


class Dear(InstantBackend):
    """Reads each prefix once: the first row on it is not cached."""

    def __init__(self) -> None:
        super().__init__(prices=PRICES, limit=10**6)
        self._read: set[int] = set()

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        async for news in super().submit(batch):
            for i, prefix in enumerate(map(hash, batch.prefixes)):
                if prefix not in self._read:
                    self._read.add(prefix)
                    assert batch.prefix_of is not None
                    first = int((batch.prefix_of == i).argmax())
                    news.usage[first, 2] += news.usage[first, 1]
                    news.usage[first, 1] = 0
            yield news


def run(tmp_path: Path, budget: Budget) -> tuple[Tally, Stop, int]:
    systems = [f"Rubric {i}. {RUBRIC}" for i in range(3)]
    lines = [chat(f"r{i}", f"candidate {i}", systems[i % 3], max_tokens=10) for i in range(ROWS)]
    path = tmp_path / "b.journal"
    path.unlink(missing_ok=True)
    journal, stop, backend = Journal.open(path), Stop(), Dear()
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    tally = tallied(journal)
    priced(journal, tally, "m", PRICES)
    asyncio.run(Runner(journal, backend, "m", tally, stop, budget=budget).run())
    kept = journal.count("results")
    journal.close()
    return tally, stop, kept


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.5, 0.9])
def test_money(tmp_path: Path, share: float) -> None:
    whole, _, _ = run(tmp_path, Budget())
    assert whole.done == ROWS
    limit = whole.money * share
    tally, stop, kept = run(tmp_path, Budget(money=limit))
    assert stop.reason.startswith("the budget is used up") and kept == tally.done < ROWS
    assert tally.money <= limit
    dearest = 3 * (PRICES.of(420, 0, 10, 420) * 2)  # what could no longer be risked at the end
    assert tally.money >= limit - dearest


@pytest.mark.parametrize("share", [0.001, 0.2, 0.8])
def test_tokens(tmp_path: Path, share: float) -> None:
    whole, _, _ = run(tmp_path, Budget())
    limit = round((whole.computed + whole.output) * share)
    tally, stop, _ = run(tmp_path, Budget(tokens=limit))
    assert stop.reason and tally.computed + tally.output <= limit
    assert tally.computed + tally.output >= limit - 2000


def test_a_budget_that_is_enough_stops_nothing(tmp_path: Path) -> None:
    tally, stop, _ = run(tmp_path, Budget(money=10.0, tokens=10**7))
    assert tally.done == ROWS and not stop.reason


def test_what_earlier_sessions_have_spent_counts(tmp_path: Path) -> None:
    lines = [chat(f"r{i}", f"candidate {i}", max_tokens=10) for i in range(200)]
    journal = Journal.open(tmp_path / "c.journal")
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    backend, done = FakeBackend(lambda prefix, text: "yes"), []
    for _ in range(2):
        tally = tallied(journal)
        runner = Runner(journal, backend, "m", tally, Stop(), budget=Budget(tokens=1000))
        asyncio.run(runner.run())
        assert 0 < tally.computed + tally.output <= 1000
        done.append(tally.done)
    assert done[1] - done[0] < done[0] < 200
    journal.close()


class Lossy(InstantBackend):
    """Every row was asked once before, and that was never answered."""

    sent = 0

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        assert batch.spending is not None
        room = True
        for row in range(len(batch)):
            attempt = await batch.spending.attempt(row, (400, 10)) if room else None
            if room := attempt is not None:
                assert attempt is not None and attempt.sent()
                attempt.over()
                self.sent += 1
        async for news in super().submit(batch):
            yield news if room else replace(news, finish=[Finish.CANCELLED] * len(news.rows))


def test_what_was_not_answered_may_have_been_billed_and_counts(tmp_path: Path) -> None:
    lines = [chat(f"r{i}", f"candidate {i}", max_tokens=10) for i in range(ROWS)]
    journal = Journal.open(tmp_path / "d.journal")
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    backend, limit = Lossy(prices=PRICES, limit=10**6), 200_000
    for _ in range(2):
        tally = tallied(journal)
        priced(journal, tally, "m", PRICES)
        assert tally.unsure == 410 * backend.sent  # what the session before has lost
        assert tally.unsure_money == pytest.approx(backend.sent * (400 * 1.25 + 10 * 4) / 1e6)
        stop = Stop()
        asyncio.run(Runner(journal, backend, "m", tally, stop, budget=Budget(tokens=limit)).run())
        assert stop.reason.startswith("the budget is used up")
        assert tally.unsure == 410 * backend.sent and tally.unsure <= limit
        limit *= 2
    assert 0 < tally.done < ROWS
    journal.close()
