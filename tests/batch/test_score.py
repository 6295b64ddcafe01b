"""Scores: every column is what the backend says when it is asked directly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preread.backend import Choose, RequestBatch
from preread.batch.forms import TableRows
from preread.batch.job import begin, models, tallied
from preread.batch.journal import Journal
from preread.batch.output import write_in_order
from preread.batch.run import Runner, Stop
from preread.batch.score import (
    CONTENT_FREE,
    Question,
    Scoring,
    labelled,
    read_questions,
    scaled,
)
from preread.batch.scored import Scored
from preread.batch.template import RowTable, Template
from preread.errors import RequestError
from preread.testing.instant import InstantBackend
from preread.types import Prefix

from .made import objects, written

RUBRIC = "Can they sail?"
NAMES = [f"Ann {i}" for i in range(30)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal.open(tmp_path / "run.journal")
    yield made
    made.close()


def scored(
    tmp_path: Path, journal: Journal, questions: Sequence[Question], names: Sequence[str] = NAMES,
    *, calibrate: bool = False, check_position: bool = False,
) -> tuple[list[dict[str, Any]], Scored]:  # fmt: skip
    """Rows of the output, and what was seen of them."""
    scoring = Scoring(questions, "m", RUBRIC, calibrate=calibrate, check_position=check_position)
    seen = Scored(scoring)
    source = written(tmp_path / "in.jsonl", [{"name": name} for name in names])
    table = RowTable(
        [str(source)], list(scoring.asks()), Template("{name}"), fixed=scoring.fixed,
        reserved=scoring.columns(),
    )  # fmt: skip
    begin(journal, table)
    for model, _ in models(journal):
        asyncio.run(Runner(journal, InstantBackend(), model, tallied(journal), Stop()).run())
    journal.check()
    scoring.prepare(journal)
    seen.begin()
    form = TableRows(".jsonl", ["name"], scoring.columns(), seen.cells, table.files)
    write_in_order(journal, form, tmp_path / "out.jsonl", tmp_path / "errors.jsonl")
    return objects(tmp_path / "out.jsonl"), seen


def chosen(labels: Sequence[str], text: str) -> np.ndarray:
    """What the backend says of one text, asked alone."""

    async def ask() -> np.ndarray:
        batch = RequestBatch(Choose(tuple(labels)), [text], (Prefix(RUBRIC),))
        async for news in InstantBackend().submit(batch):
            assert news.label_probs is not None
            return news.label_probs[0].astype(np.float64)
        raise AssertionError

    return asyncio.run(ask())


def test_labels(tmp_path: Path, journal: Journal) -> None:
    rows, seen = scored(tmp_path, journal, [labelled("yes, no,maybe")])
    assert [row["name"] for row in rows] == NAMES
    for row in rows:
        probs = chosen(("yes", "no", "maybe"), row["name"])
        assert [row[f"p({n})"] for n in ("yes", "no", "maybe")] == pytest.approx(probs, abs=1e-6)
        assert row["label"] == ("yes", "no", "maybe")[int(probs.argmax())]
        assert row["mass"] == pytest.approx(0.9) and row["error"] == ""
    (value,) = seen.to_json()
    assert sum(value["counts"].values()) == 30 and "agreement" not in value
    best = [cells["p(yes)"] for cells in seen.top()]
    assert best == sorted((row["p(yes)"] for row in rows), reverse=True)[:20]


def test_what_rows_share_is_asked_as_a_prefix(tmp_path: Path, journal: Journal) -> None:
    scored(tmp_path, journal, [labelled("yes,no")])
    ((body,),) = journal.read("SELECT body FROM prefixes")
    assert json.loads(body)[0] == f"{RUBRIC}\n\nAnswer with exactly one of: yes, no."
    texts = {text for (text,) in journal.read("SELECT text FROM requests")}
    assert texts == set(NAMES)


def test_a_scale_has_an_expected_value(tmp_path: Path, journal: Journal) -> None:
    rows, seen = scored(tmp_path, journal, [scaled("1-5")])
    for row in rows:
        probs = chosen(tuple("12345"), row["name"])
        assert row["score"] == pytest.approx(float(probs @ np.arange(1, 6)), abs=1e-5)
    counts = dict(seen.histogram(0))
    assert list(counts) == list("12345") and sum(counts.values()) == 30
    assert counts["3"] == sum(2.5 <= row["score"] <= 3.5 for row in rows)


def test_several_questions_follow_the_item(tmp_path: Path, journal: Journal) -> None:
    questions = [
        Question("sea", "Can they sail?", ("yes", "no")),
        scaled("1-3", "fit", "How good?"),
    ]
    rows, _ = scored(tmp_path, journal, questions)
    assert list(rows[0]) == [
        "name", "sea.label", "sea.p(yes)", "sea.p(no)", "sea.mass",
        "fit.label", "fit.score", "fit.p(1)", "fit.p(2)", "fit.p(3)", "fit.mass", "error",
    ]  # fmt: skip
    for row in rows:
        text = f"{row['name']}\n\nCan they sail?\nAnswer with exactly one of: yes, no."
        assert row["sea.p(yes)"] == pytest.approx(chosen(("yes", "no"), text)[0], abs=1e-6)
        text = f"{row['name']}\n\nHow good?\nAnswer with exactly one of: 1, 2, 3."
        assert row["fit.p(3)"] == pytest.approx(chosen(tuple("123"), text)[2], abs=1e-6)


def test_calibration_divides_by_what_nothing_gets(tmp_path: Path, journal: Journal) -> None:
    rows, seen = scored(tmp_path, journal, [labelled("a,b")], calibrate=True)
    assert len(rows) == 30 == seen.rows  # the items without content are no rows
    nothing = np.mean([chosen(("a", "b"), item) for item in CONTENT_FREE], axis=0)
    for row in rows:
        expected = chosen(("a", "b"), row["name"]) / nothing
        assert row["p(a)"] == pytest.approx(expected[0] / expected.sum(), abs=1e-5)


def test_the_position_check_asks_twice_and_averages(tmp_path: Path, journal: Journal) -> None:
    question = Question("q", "Well?", ("a", "b"))
    rows, seen = scored(tmp_path, journal, [question], check_position=True)
    agreed = 0
    for row in rows:
        turns = [
            chosen(("a", "b"), f"{row['name']}\n\nWell?\nAnswer with exactly one of: {listed}.")
            for listed in ("a, b", "b, a")
        ]
        assert row["q.p(a)"] == pytest.approx(np.mean([t[0] for t in turns]), abs=1e-6)
        assert row["q.agree"] == (turns[0].argmax() == turns[1].argmax())
        agreed += row["q.agree"]
    assert 0 < agreed < 30
    assert seen.to_json()[0]["agreement"] == pytest.approx(agreed / 30, abs=1e-4)


def test_rows_that_fail_keep_their_place(tmp_path: Path, journal: Journal) -> None:
    names = ["Ann", "fail", "Bob"]
    rows, seen = scored(tmp_path, journal, [labelled("a,b")], names, check_position=True)
    assert [row["error"] for row in rows] == ["", "the text asked for it", ""]
    assert rows[1]["label"] is None and rows[1]["p(a)"] is None
    assert (seen.rows, seen.failed) == (3, 1)
    (bad,) = objects(tmp_path / "errors.jsonl")
    assert bad["row"] == {"name": "fail"} and bad["line"] == 2


def test_wide_scales_fit_a_histogram(tmp_path: Path, journal: Journal) -> None:
    rows, seen = scored(tmp_path, journal, [scaled("0-100")])
    bins = seen.histogram(0)
    assert len(bins) <= 20 and sum(n for _, n in bins) == len(rows)


@pytest.mark.parametrize("text", ["", "a", "a,,b", "a,a"])
def test_labels_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="--labels"):
        labelled(text)


@pytest.mark.parametrize("text", ["5", "a-b", "5-1", "3-3", "0-1000", "1-"])
def test_scales_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="--scale"):
        scaled(text)


@pytest.mark.parametrize(("line", "told"), [
    ("{", "not JSON"),
    ("[]", "expected an object"),
    ('{"name": "x", "name": "y", "question": "z", "scale": "1-2"}', "name: is there twice"),
    ('{"name": "x", "question": "y", "scale": NaN}', "scale: NaN is no finite number"),
    ('{"question": "x", "labels": ["a", "b"]}', "name"),
    ('{"name": "x", "labels": ["a", "b"]}', "question"),
    ('{"name": "x", "question": "y"}', "labels"),
    ('{"name": "x", "question": "y", "labels": ["a", "b"], "scale": "1-2"}', "labels"),
    ('{"name": "x", "question": "y", "labels": "a,b"}', "labels"),
    ('{"name": "x", "question": "y", "labels": ["a"]}', "labels"),
    ('{"name": "x", "question": "y", "scale": 5}', "scale"),
    ('{"name": "x", "question": "y", "label": ["a", "b"]}', "label: unknown"),
    ('{"name": "ok", "question": "y", "scale": "1-2"}', "there twice"),
])  # fmt: skip
def test_questions_that_are_none(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"name": "ok", "question": "y", "scale": "1-2"}\n' + line + "\n")
    with pytest.raises(RequestError, match=told) as caught:
        read_questions(path)
    assert f"{path}:2" in str(caught.value)


def test_questions_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"name": "a", "question": "A?", "labels": ["x", "y"]}\n\n'
        '{"name": "b", "question": "B?", "scale": "1-3"}\n'
    )
    assert read_questions(path) == [
        Question("a", "A?", ("x", "y")),
        Question("b", "B?", ("1", "2", "3"), (1.0, 2.0, 3.0)),
    ]
    path.write_text("\n")
    with pytest.raises(RequestError, match="no question"):
        read_questions(path)
