"""Which backend a model gets, and what is said about it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import preread
from preread.app import choosing
from preread.app.compose import check_parity
from preread.errors import ConfigError, UnsupportedModel
from preread.testing.models import write_tiny_model
from tests.foreign.made import write_foreign_model


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_foreign_model(tmp_path_factory.mktemp("windowed") / "m", "mistral")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("native") / "m", "qwen3")


def test_what_the_decoder_computes_stays_there(native: Path):
    with preread.open(str(native), dtype="float32") as engine:
        assert (engine.info.name, engine.notes) == ("local", ())


def test_what_it_refuses_goes_to_transformers_and_that_is_said(
    windowed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "a.md").write_text("Staff get 25 days of leave.\n")
    with caplog.at_level(logging.WARNING), preread.open(str(windowed), dtype="float32") as engine:
        assert engine.info.name == "transformers"
        assert engine.parameters > 100_000
        (note,) = engine.notes
        first = engine.context("hb", tmp_path / "a.md").ask("How many?", max_tokens=8)
        assert first.usage.cached_tokens > 0
        one = engine.generate("Once upon a time", max_tokens=4)
    assert note in caplog.text
    assert "transformers" in note and "slower" in note and "sliding_window = 48" in note
    with preread.open(str(windowed), dtype="float32") as engine:  # another process, as it were
        again = engine.open("hb").ask("How many?", max_tokens=8)
        assert engine.metrics["foreign.prefix_loaded_tokens"] > 0
        assert engine.generate("Once upon a time", max_tokens=4).tokens == one.tokens
    assert again.tokens == first.tokens and again.timing.load_ms > 0


def test_what_cannot_be_kept_is_said(tmp_path: Path):
    folder = write_foreign_model(tmp_path / "m", "mamba")
    with preread.open(str(folder), dtype="float32") as engine:
        assert any("again" in note and "LinearAttention" in note for note in engine.notes)


def test_the_knob(windowed: Path, native: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREREAD_MODEL_BACKEND", "transformers")
    with preread.open(str(native), dtype="float32") as engine:
        assert engine.info.name == "transformers"
    monkeypatch.setenv("PREREAD_MODEL_BACKEND", "native")
    with pytest.raises(UnsupportedModel, match="sliding_window"):
        preread.open(str(windowed))
    monkeypatch.setenv("PREREAD_MODEL_BACKEND", "fastest")
    with pytest.raises(ConfigError, match="auto, native, transformers"):
        preread.open(str(windowed))


def test_without_transformers_the_error_says_how_to_get_it(
    windowed: Path, native: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(choosing, "find_spec", lambda _: None)
    with preread.open(str(native), dtype="float32") as engine:
        assert engine.info.name == "local"
    with pytest.raises(UnsupportedModel, match=r"sliding_window.*pip install 'preread\[trans"):
        preread.open(str(windowed))
    quantised = write_tiny_model(tmp_path / "q", "qwen3")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel) as caught:  # installing it would not help
        preread.open(str(quantised))
    assert "quantised" in str(caught.value) and "pip" not in str(caught.value)


def test_parity_is_measured_on_it(windowed: Path):
    report = check_parity(str(windowed), prompts=4)
    assert report.ok and report.rows == 9
