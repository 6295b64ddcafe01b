"""Inputs, options and places that would lose rows, results or money."""

from __future__ import annotations

import asyncio
import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from preread.batch.job import begin, models, priced, tallied
from preread.batch.journal import Journal
from preread.batch.run import Runner, Stop
from preread.batch.score import read_questions, scaled
from preread.errors import RequestError, SourceError, StateError
from preread.prices import Prices
from preread.testing.backend import FakeBackend
from preread.testing.instant import InstantBackend
from preread.testing.replies import Reply
from preread.types import Prefix

from .made import batch_table, chat, finished, row_table, written

PRICES = Prices(computed=1.0, cached=0.1, written=1.25, output=4.0)


def opened(tmp_path: Path) -> Journal:
    return Journal.open(tmp_path / "run.journal")


def run(journal: Journal, model: str, prices: Prices | None = PRICES) -> float:
    """Money after the requests of one model."""
    tally = tallied(journal)
    priced(journal, tally, model, prices)
    backend = InstantBackend(prices=prices)
    asyncio.run(Runner(journal, backend, model, tally, Stop()).run())
    return tally.money


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_no_cell_ends_a_row(tmp_path: Path, suffix: str) -> None:
    odd = ["a\rb", "c\nd", "e\r\nf", 'g"h', "i,j", "k\tl", "m\u2028n", "=o", " p ", "q\x00", ""]
    rows = [{"number": str(i), "cell": cell} for i, cell in enumerate(odd)]
    table = row_table(written(tmp_path / "in.jsonl", rows))
    journal, out = opened(tmp_path), tmp_path / f"out{suffix}"
    echo = FakeBackend(lambda prefix, text: Reply(text.split("cell: ", 1)[1]))
    finished(table, journal, echo, out)
    journal.close()
    with open(out, newline="", encoding="utf-8") as file:
        told = list(csv.DictReader(file, delimiter="," if suffix == ".csv" else "\t"))
    assert [(row["number"], row["cell"], row["answer"]) for row in told] == [
        (str(i), cell, cell) for i, cell in enumerate(odd)
    ]


def test_a_column_that_is_there_twice_is_not_dropped(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = [arrow.array(["a"]), arrow.array(["b"])]
    path = tmp_path / "in.parquet"
    parquet.write_table(arrow.Table.from_arrays(columns, names=["s", "s"]), path)
    journal = opened(tmp_path)
    with pytest.raises(SourceError, match="'s' is there twice"):
        begin(journal, row_table(path))
    journal.close()


def test_money_of_a_model_that_is_done_is_not_forgotten(tmp_path: Path) -> None:
    lines = [chat(f"{m}{i}", f"text {i}", model=m) for m in ("a", "b") for i in range(9)]
    table = batch_table(written(tmp_path / "in.jsonl", lines))
    journal = opened(tmp_path)
    begin(journal, table)
    first = run(journal, "a")
    assert first > 0 and [name for name, _ in models(journal)] == ["b"]
    journal.close()
    journal = opened(tmp_path)  # a session of its own
    begin(journal, table, resume=True)
    tally = tallied(journal)
    assert tally.money == pytest.approx(first)
    assert run(journal, "b") == pytest.approx(2 * first)
    journal.close()


def test_failed_rows_that_run_again_were_paid(tmp_path: Path) -> None:
    def refuse(prefix: Prefix, text: str) -> Reply:
        return Reply("", error="The model refused.")

    table = batch_table(written(tmp_path / "in.jsonl", [chat("a", "x"), chat("b", "y")]))
    journal = opened(tmp_path)
    finished(table, journal, FakeBackend(refuse), tmp_path / "out.jsonl")
    journal.read("UPDATE results SET computed = 70, output = 5")  # as a server bills a refusal
    for _ in range(2):
        before = tallied(journal)
        begin(journal, table, retry=True)
        after = tallied(journal)
        assert (after.done, after.computed, after.output) == (0, before.computed, before.output)
        assert after.computed == 140
        priced(journal, after, "m", PRICES)
        assert after.money == pytest.approx(PRICES.of(140, 0, 10))
    journal.close()


def test_results_that_are_in_no_output_are_not_dropped(tmp_path: Path) -> None:
    table = batch_table(written(tmp_path / "in.jsonl", [chat("a", "x")]))
    journal = opened(tmp_path)
    begin(journal, table)
    asyncio.run(Runner(journal, InstantBackend(), "m", tallied(journal), Stop()).run())
    with pytest.raises(RequestError, match="in no output yet"):
        begin(journal, table)
    finished(table, journal, InstantBackend(), tmp_path / "out.jsonl", resume=True)
    begin(journal, table)
    assert journal.count("results") == 0
    journal.close()


@pytest.mark.parametrize("how", [{"resume": True}, {"retry": True}])
def test_nothing_is_both_gone_on_with_and_forgotten(tmp_path: Path, how: dict[str, bool]) -> None:
    table = batch_table(written(tmp_path / "in.jsonl", [chat("a", "x")]))
    journal = opened(tmp_path)
    finished(table, journal, InstantBackend(), tmp_path / "out.jsonl")
    with pytest.raises(RequestError, match="--fresh"):
        begin(journal, table, fresh=True, **how)
    assert journal.count("results") == 1
    journal.close()


def test_a_damaged_journal_is_told_of(tmp_path: Path) -> None:
    rows = [chat(f"r{i}", f"text {i} " * 50) for i in range(500)]
    table = batch_table(written(tmp_path / "in.jsonl", rows))
    journal = opened(tmp_path)
    finished(table, journal, InstantBackend(), tmp_path / "out.jsonl")
    journal.close()
    path = tmp_path / "run.journal"
    with open(path, "r+b") as file:
        file.seek(4096 * 12)
        file.write(b"\xff" * 4096 * 60)
    with pytest.raises(StateError, match=r"damaged|malformed"):
        journal = opened(tmp_path)
        try:
            finished(table, journal, InstantBackend(), tmp_path / "out.jsonl", resume=True)
        finally:
            journal.close()


def test_a_journal_of_another_release_is_not_touched(tmp_path: Path) -> None:
    opened(tmp_path).close()
    path = tmp_path / "run.journal"
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE meta SET value = '1' WHERE key = 'format'")
        other.commit()
    before = path.read_bytes()
    with pytest.raises(StateError, match="no journal of this release"):
        opened(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", 2**63),
        ("max_tokens", 2**31),
        ("seed", 2**63),
        ("seed", -(2**63) - 1),
    ],
)
def test_numbers_that_no_column_holds_are_faults(tmp_path: Path, field: str, value: int) -> None:
    table = batch_table(written(tmp_path / "in.jsonl", [chat("a", "x", **{field: value})]))
    journal = opened(tmp_path)
    with pytest.raises(RequestError, match=f"in.jsonl:1: body.{field}"):
        begin(journal, table)
    journal.close()


def test_what_is_nested_too_deeply_is_a_fault(tmp_path: Path) -> None:
    deep = '{"a": ' * 900 + "1" + "}" * 900
    shape = '{"type": "json_schema", "json_schema": {"schema": DEEP}}'.replace("DEEP", deep)
    line = json.dumps(chat("a", "x", response_format="HERE")).replace('"HERE"', shape)
    journal = opened(tmp_path)
    with pytest.raises(RequestError, match="1: body: is nested too deeply"):
        begin(journal, batch_table(written(tmp_path / "in.jsonl", [line])))
    journal.close()


@pytest.mark.parametrize("scale", ["5-1", "1-1", "1-99999999999999999999999", "1-", "-1-5", "a-b"])
def test_scales_that_are_none(scale: str) -> None:
    with pytest.raises(RequestError):
        scaled(scale)


def test_questions_end_at_line_ends_only(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    text = "can\u2028sail\x85?"
    line = json.dumps({"name": "n", "question": text, "labels": ["a", "b"]}, ensure_ascii=False)
    path.write_text(f"\ufeff{line}\r\n\r\n", encoding="utf-8")
    (question,) = read_questions(path)
    assert question.text == text
    path.write_text("[" * 100_000)
    with pytest.raises(RequestError, match="not JSON"):
        read_questions(path)
