"""What is foreseen, and why not more was reused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from os.path import commonprefix
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.backend import Generate, RequestBatch, ResultBatch
from preread.batch.forecast import Forecast, forecast
from preread.batch.job import begin, tallied, warm
from preread.batch.journal import Journal
from preread.batch.keys import alike
from preread.batch.misfits import check_asked, check_fit
from preread.batch.misses import misses
from preread.batch.report import make_report
from preread.batch.run import Runner, Stop
from preread.errors import RequestError
from preread.prices import Prices
from preread.testing.backend import FakeBackend
from preread.testing.instant import InstantBackend
from preread.types import Built, Prefix

from .made import RUBRIC, batch_table, chat, row_table, written

PRICES = Prices(computed=1.0, cached=0.1, written=1.25, output=4.0)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal.open(tmp_path / "run.journal")
    yield made
    made.close()


def foreseen(
    journal: Journal, tmp_path: Path, lines: list[object], backend: InstantBackend | FakeBackend
) -> Forecast:
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    return asyncio.run(forecast(journal, backend, "m"))


@given(st.text("ab", max_size=40), st.text("ab", max_size=40), st.text("ab", max_size=40))
def test_common_beginnings(head: str, one: str, two: str) -> None:
    pair = [head + one, head + two]
    assert alike(*pair) == len(commonprefix(pair))  # noqa: RUF071 - texts, no paths


def test_what_comes_is_what_was_foreseen(journal: Journal, tmp_path: Path) -> None:
    """Exactly, where rows are of one length: words are tokens, caching is real."""
    systems = [f"Rubric {i}. {RUBRIC}" for i in range(3)]
    lines: list[object] = [chat(f"r{i}", f"word {i}", systems[i % 3]) for i in range(90)]
    backend = FakeBackend(lambda prefix, text: "yes")
    made = foreseen(journal, tmp_path, lines, backend)
    tally = tallied(journal)
    asyncio.run(Runner(journal, backend, "m", tally, Stop()).run())
    assert made.prompt == tally.cached + tally.computed
    assert abs(made.cached - tally.cached) <= 2 * 3  # where two rubrics begin with the same words
    assert [(group.rows, group.tokens) for group in made.groups] == [
        (30, made.groups[0].tokens)
    ] * 3
    assert made.output == 90 * 8 and made.money is None


def test_histories_share_what_they_have_in_common(journal: Journal, tmp_path: Path) -> None:
    lines: list[object] = []
    for i in range(40):
        line = chat(f"r{i}", "Well?")
        turns = [{"role": "user", "content": f"case {i}"}, {"role": "assistant", "content": "Yes."}]
        line["body"]["messages"][1:1] = turns
        lines.append(line)
    made = foreseen(journal, tmp_path, lines, FakeBackend())
    assert made.group_count == 40
    assert 0.9 < made.cached / made.prompt < 1  # the rules are read once, the cases each


def test_money(journal: Journal, tmp_path: Path) -> None:
    lines: list[object] = [chat(f"r{i}", f"candidate {i:03d}") for i in range(100)]
    made = foreseen(journal, tmp_path, lines, InstantBackend(prices=PRICES))
    assert made.money == pytest.approx(
        (made.computed * 1.0 + made.cached * 0.1 + made.output * 4.0) / 1e6
    )
    assert made.whole == pytest.approx((made.prompt * 1.0 + made.output * 4.0) / 1e6)
    assert Forecast.from_json(made.to_json()) == made


def test_beginnings_too_short_for_a_provider_are_told(journal: Journal, tmp_path: Path) -> None:
    lines: list[object] = [chat(f"r{i}", f"candidate {i}") for i in range(50)]
    made = foreseen(journal, tmp_path, lines, InstantBackend(min_prefix=4096))
    assert made.cached == 0 and "4,096 tokens or more" in made.notes[0]


def test_a_shared_part_behind_what_differs_is_told(journal: Journal, tmp_path: Path) -> None:
    lines: list[object] = [chat(f"r{i}", f"Candidate {i}:\n{RUBRIC}", "") for i in range(50)]
    made = foreseen(journal, tmp_path, lines, InstantBackend())
    assert any("end alike" in text and "read once" in text for text in made.notes)


def test_a_shared_beginning_of_user_texts_is_told(journal: Journal, tmp_path: Path) -> None:
    lines: list[object] = [chat(f"r{i}", f"{RUBRIC}Candidate {i}", "") for i in range(50)]
    made = foreseen(journal, tmp_path, lines, InstantBackend())
    assert any("token by token" in text for text in made.notes)
    assert made.cached > 0.9 * made.prompt


@pytest.mark.parametrize(("found", "rate"), [(0, 300.0), (5, 295.0), (290, 0.0), (300, 0.0)])
def test_a_rate_of_reading_is_that_of_a_prefix_that_was_read(
    journal: Journal, tmp_path: Path, found: int, rate: float
) -> None:
    """Of one that was found but for its last tokens it would promise days that nobody saves."""

    class Found(InstantBackend):
        async def build(self, prefix: Prefix, **how: Any) -> Built:
            return Built(300, found, 0, 300 - found, 0, 0.0, 1.0)

    begin(journal, batch_table(written(tmp_path / "in.jsonl", [chat("r", "c")])))
    assert asyncio.run(warm(journal, Found(), "m", tallied(journal))) == rate


def test_where_two_beginnings_part_is_told(journal: Journal, tmp_path: Path) -> None:
    """A date in the rules: the classic that makes caches useless."""
    systems = [f"You score.\nToday is 2026-11-{day}.\n{RUBRIC}" for day in (21, 22)]
    lines: list[object] = [chat(f"r{i}", f"c{i}", systems[i % 2]) for i in range(20)]
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    backend = InstantBackend()
    (miss,) = asyncio.run(misses(journal, backend, "m"))
    assert miss.token == asyncio.run(backend.count([Prefix(systems[0][: miss.at])]))[0]
    assert miss.file == miss.other_file == str(tmp_path / "in.jsonl")
    assert miss.at == systems[0].index("21.") + 1
    assert "2026-11-21" in miss.here and "2026-11-22" in miss.there
    assert {miss.line, miss.other_line} == {1, 2}
    assert miss.lost == len(RUBRIC) + 3


def test_a_beginning_is_told_by_its_first_row(journal: Journal, tmp_path: Path) -> None:
    """Lines of several files, and rows that are not of the input (line 0)."""
    systems = [f"Today is 2026-11-{day}.\n{RUBRIC}" for day in (21, 22)]
    two = written(tmp_path / "b.jsonl", [chat("x", "x", systems[1])])
    one = written(tmp_path / "a.jsonl", [chat(f"r{i}", f"c{i}", systems[i > 2]) for i in range(4)])
    begin(journal, batch_table(one, two))
    (miss,) = asyncio.run(misses(journal, InstantBackend(), "m"))
    assert {(miss.file, miss.line), (miss.other_file, miss.other_line)} == {
        (str(one), 1), (str(one), 4)}  # fmt: skip


def test_the_bill(journal: Journal, tmp_path: Path) -> None:
    lines: list[object] = [chat(f"r{i}", f"c{i % 8}") for i in range(10)]
    backend = InstantBackend(prices=PRICES)
    made = foreseen(journal, tmp_path, lines, backend)
    tally = tallied(journal)
    tally.prices = PRICES
    asyncio.run(Runner(journal, backend, "m", tally, Stop()).run())
    value = make_report(journal, tally, [made], tokens_per_s=100.0).to_json()
    assert (value["requests"], value["run"], value["twins"]) == (10, 8, 2)
    tokens = value["tokens"]
    assert tokens["prompt"] == tokens["cached"] + tokens["computed"]
    assert value["hit_rate"] == pytest.approx(tokens["cached"] / tokens["prompt"], abs=1e-4)
    assert value["saved_s"] == pytest.approx(tokens["cached"] / 100, abs=0.1)
    money = value["money"]
    assert money["spent"] + money["saved"] == pytest.approx(
        PRICES.of(tokens["prompt"], 0, tokens["output"]), abs=1e-6
    )


def test_what_was_read_for_all_rows_is_of_the_first(journal: Journal, tmp_path: Path) -> None:
    """The prompts are no longer for it: what is foreseen is what comes."""
    lines: list[object] = [chat(f"r{i}", f"c{i}") for i in range(10)]
    backend = InstantBackend()
    made = foreseen(journal, tmp_path, lines, backend)
    tally = tallied(journal)
    asyncio.run(warm(journal, backend, "m", tally))
    asyncio.run(Runner(journal, backend, "m", tally, Stop()).run())
    for seen in (tally, tallied(journal)):
        tokens = make_report(journal, seen, [made], 0.0).to_json()["tokens"]
        assert tokens["prompt"] == tokens["cached"] + tokens["computed"] == made.prompt
        assert tokens["cached"] == made.cached and tokens["computed"] == made.computed
        assert seen.cached_share == made.cached / made.prompt


def test_what_a_backend_does_not_take_is_refused_before_it_is_sent(
    journal: Journal, tmp_path: Path
) -> None:
    class Picky(InstantBackend):
        async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
            if isinstance(batch.work, Generate) and batch.work.sampling.seed == 3:
                raise RequestError("picky: it takes no seed.", hint="See elsewhere.")
            async for news in super().submit(batch):
                yield news

    backend, seeds = Picky(), [1, 3, None, 3]
    lines = [chat(f"r{i}", f"c{i}", seed=seed) for i, seed in enumerate(seeds)]
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    with pytest.raises(RequestError) as caught:
        asyncio.run(check_asked(journal, backend, "m"))
    assert "in.jsonl:2: request: picky: it takes no seed (2 rows ask for it)" in str(caught.value)
    assert caught.value.hint == "See elsewhere." and backend.rows == 0
    asyncio.run(check_asked(journal, InstantBackend(), "m"))


def test_rows_that_do_not_fit(journal: Journal, tmp_path: Path) -> None:
    """By tokens, not by characters or bytes: only those that are too long are named."""
    lines: list[object] = [
        chat("short", "word"),
        chat("wide", "é" * 3000),  # 6,000 bytes, 750 tokens
        chat("long", "x" * 20000),
        chat("rules", "word", "y" * 20000),
    ]
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    with pytest.raises(RequestError) as caught:
        asyncio.run(check_fit(journal, InstantBackend(limit=4096), "m"))
    told = str(caught.value)
    assert told.startswith("2 faults") and ":3: prompt: 5,350 tokens" in told
    assert ":4: prompt: 5,001 tokens" in told and "instant reads less than 4,096" in told
    asyncio.run(check_fit(journal, InstantBackend(limit=6000), "m"))


def test_nothing_is_counted_where_nothing_can_be_too_long(journal: Journal, tmp_path: Path) -> None:
    backend = FakeBackend()
    rows = [{"name": f"Ann {i}"} for i in range(100)]
    begin(journal, row_table(written(tmp_path / "in.jsonl", rows)))
    asyncio.run(check_fit(journal, backend, "m"))
    assert not backend.calls
