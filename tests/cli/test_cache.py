"""`--cache`: a second run asks nothing again, and says so."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.responses.test_similar import embeddings

from .conftest import one_json

Call = Callable[..., Result]


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.csv"
    path.write_text("name\nAnn\nBob\n")
    (tmp_path / "rules.md").write_text("Who can sail? " * 20)
    return path


def test_rows(call: Call, items: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    command = ("batch", items, "--prompt", tmp_path / "rules.md", "-o", out, "--fresh", "--json")
    plain = one_json(call(*command))
    assert plain["from_response_cache"] == 0 and "cached_response" not in out.read_text()
    first = one_json(call(*command, "--cache"))
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert first["from_response_cache"] == 0 and [r["cached_response"] for r in rows] == ["", ""]
    items.write_text("name\nAnn\nBob\nCy\n")
    again = one_json(call(*command, "--cache"))
    later = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["answer"] for row in later[:2]] == [row["answer"] for row in rows]
    assert [bool(row["cached_response"]) for row in later] == [True, True, False]
    assert again["from_response_cache"] == 2 and again["run"] == 3
    tokens = again["tokens"]  # of the one row that ran: the kept ones count nowhere
    assert 0 < tokens["prompt"] < first["tokens"]["prompt"] and tokens["output"] <= 8


def test_lines_and_scores(call: Call, items: Path, tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    lines.write_text(json.dumps(line) + "\n")
    out = tmp_path / "out.jsonl"
    command = ("batch", lines, "-o", out, "--fresh", "--cache", "--json", "--model")
    for kept in (False, True):
        one_json(call(*command, os.environ["PREREAD_MODEL_MODEL"]))
        answer = json.loads(out.read_text())["response"]["body"]
        assert ("cached_response" in answer) == kept
    assert answer["cached_response"] == {"similarity": 1.0, "question": ""}
    assert answer["usage"]["total_tokens"] == 0
    scores = tmp_path / "s.csv"
    score = ("score", items, "--labels", "A,B", "-o", scores, "--fresh", "--cache", "--json")
    first, again = one_json(call(*score)), one_json(call(*score))
    assert first["questions"] == again["questions"] and again["from_response_cache"] == 2
    assert again["tokens"]["computed"] == 0


def test_rows_by_likeness_show_what_they_were_given_to(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_RESPONSES_EMBEDDING_MODEL", "words")
    items, out = tmp_path / "q.csv", tmp_path / "a.jsonl"
    command = ("batch", items, "--item", "{q}", "-o", out, "--fresh", "--json")
    with embeddings() as url:
        monkeypatch.setenv("PREREAD_RESPONSES_EMBEDDINGS", url)
        items.write_text("q\nWhen open shop?\n")
        assert one_json(call(*command))["from_response_cache"] == 0
        first = json.loads(out.read_text())
        items.write_text("q\nshop open when\nprice chair\n")
        assert one_json(call(*command))["from_response_cache"] == 1
    like, other = map(json.loads, out.read_text().splitlines())
    assert like["answer"] == first["answer"] and other["cached_response"] is None
    assert like["cached_response"] == {"similarity": 1.0, "question": "When open shop?"}


def test_no_score_by_likeness(
    call: Call, items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_RESPONSES_EMBEDDINGS", "http://localhost:1")
    done = call("score", items, "--labels", "A,B", "-o", tmp_path / "s.csv")
    assert done.exit_code == 2 and "serves no scores" in done.message  # type: ignore[attr-defined]
