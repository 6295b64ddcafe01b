"""`preread score`: columns, page, exit codes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from .conftest import one_json

Call = Callable[..., Result]


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.csv"
    path.write_text("name,profile\nAnn,sails\nBob,<script>alert(1)</script>\nCy,rows\n")
    (tmp_path / "rubric.md").write_text("Who can sail? " * 40)
    return path


def test_rows_are_scored(call: Call, items: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    rubric = tmp_path / "rubric.md"
    done = call("score", items, "--rubric", rubric, "--labels", "A,B,C", "-o", out)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == ["name", "profile", "label", "p(A)", "p(B)", "p(C)", "mass", "error"]
    assert [row["name"] for row in rows] == ["Ann", "Bob", "Cy"]
    for row in rows:
        probs = [float(row[f"p({label})"]) for label in "ABC"]
        assert sum(probs) == pytest.approx(1, abs=1e-5) and 0 < float(row["mass"]) <= 1
        assert row["label"] == "ABC"[probs.index(max(probs))]
    page = (tmp_path / "scores.html").read_text()
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert "3 rows, 0 failed" in page and "Top rows" in page


def test_options_go_together(call: Call, items: Path, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"name": "q", "question": "Well?", "scale": "1-3"}\n')
    value = one_json(call("score", items, "--questions", questions, "--calibrate",
                          "--check-position", "-o", tmp_path / "s.jsonl",
                          "--html", tmp_path / "page.html", "--json"))  # fmt: skip
    (question,) = value["questions"]
    assert value["rows"] == 3 and sum(question["counts"].values()) == 3
    assert 0 <= question["agreement"] <= 1 and 0 < question["mass"] <= 1
    assert value["requests"] == 10  # (3 rows + 2 without content) x 2 turns
    assert Path(value["html"]).exists()
    again = one_json(call("score", items, "--questions", questions, "--calibrate",
                          "--check-position", "-o", tmp_path / "s.jsonl",
                          "--html", tmp_path / "page.html", "--json", "--resume"))  # fmt: skip
    assert again["questions"] == value["questions"]


def test_a_dry_run_writes_nothing(call: Call, items: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    value = one_json(call("score", items, "--scale", "1-5", "--dry-run", "--json"))
    assert value["requests"] == 3
    assert {path.name for path in tmp_path.iterdir()} - {"home"} == {*before} - {"home"}


def test_wrong_calls(call: Call, items: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    assert call("score", items, "--labels", "A,B").exit_code == 2  # where to?
    assert call("score", items, "-o", out).exit_code == 2
    assert call("score", items, "-o", out, "--labels", "A,B", "--scale", "1-5").exit_code == 2
    assert call("score", items, "-o", out, "--labels", "A").exit_code == 2
    assert call("score", items, "-o", tmp_path / "s.txt", "--labels", "A,B").exit_code == 2
    taken = tmp_path / "taken.csv"
    taken.write_text("label\nx\n")
    done = call("score", taken, "-o", out, "--labels", "A,B")
    assert done.exit_code == 2 and "rename it" in done.message  # type: ignore[attr-defined]
    done = call("score", items, "-o", out, "--labels", "A,B", "--format", "openai")
    assert done.exit_code == 2 and "whole requests" in done.message  # type: ignore[attr-defined]
