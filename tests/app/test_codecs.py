"""A codec that loses something: asked for, recorded in every key, said, and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import preread
from preread.app.lossy import check_codec
from preread.cli.lossy import lines
from preread.errors import ConfigError
from preread.testing.models import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_model(path, "qwen3", seed=1)
    return str(path)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "leave.md").write_text("# Leave\n\nStaff get 25 days of leave.\nAsk Ann.\n" * 9)
    return folder


def test_chunks_of_two_codecs_live_side_by_side(
    tiny: str, docs: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(codec: str) -> int:
        monkeypatch.setenv("PREREAD_STORE_CODEC", codec)
        with preread.open(tiny, dtype="float32") as engine:
            said = [note for note in engine.notes if f"preread verify --codec {codec}" in note]
            assert len(said) == (codec != "raw")
            engine.context("hb", docs).ask("How many?", max_tokens=2)
            return engine.metrics.get("engine.prefix_loaded_tokens", 0)

    for codec in ("raw", "int8", "fp8"):
        assert loaded(codec) == 0 < loaded(codec)
    assert loaded("raw") > 0
    with pytest.raises(ConfigError, match=r"store\.codec = 'zip'.*raw, fp8, int8"):
        loaded("zip")


@pytest.mark.parametrize("codec", ["raw", "fp8", "int8"])
def test_measured_before_it_is_trusted(
    tiny: str, docs: Path, home: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    monkeypatch.setenv("PREREAD_CONTEXT_MAX_TOKENS", "4")
    questions = docs / "questions.jsonl"
    asked = [{"question": "How many days?", "answer": "25"}, {"question": "Who?"}]
    questions.write_text("\n".join(map(json.dumps, asked)))
    report = check_codec(tiny, codec, docs / "leave.md", questions)
    assert (report.questions, report.graded) == (2, 1)
    assert 0 <= report.right <= 1 and 0 <= report.same <= 2 and report.tokens > 256
    if codec == "raw":
        assert (report.size, report.loss.logits, report.same) == (1, 0, 2)
        assert report.right == report.right_exact
    else:
        assert report.size < 0.6 and report.loss.logits > 0
    assert not list(home.glob("kv/**/*.kv"))  # measured in memory alone
    text = "\n".join(lines(report))
    assert codec in text and "greedy token equal at" in text
    assert report.to_json()["questions"] == 2 and json.dumps(report.to_json())
