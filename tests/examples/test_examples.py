"""The scripts under examples/ run as they stand: on a tiny model always, on the bundled one when it
is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from preread.testing.models import write_tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples"
READER = Path(__file__).parents[2] / "preread" / "assets" / "reader" / "model.safetensors"
SAYS = {
    "ask_handbook.py": (" cached, ", " computed"),
    "choose_label.py": ("a weight of 14 kg", "mass of both labels: "),
    "gather.py": (" cached, ", " computed"),
    "serve_team.py": ("models: ", "handbook", " tokens cached"),
    "session.py": (),
}
ANSWERS = {
    "ask_handbook.py": ("Brindle",),
    "choose_label.py": (),  # labels are what the reader does worst: docs/reader.md
    "gather.py": ("Brindle",),
    "serve_team.py": ("Brindle",),
    "session.py": (),
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS) == set(ANSWERS)


def _output(name: str) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(SAYS))
def test_it_runs_on_a_tiny_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path / "tiny", "qwen3", seed=1, max_position_embeddings=32_768)
    monkeypatch.setenv("PREREAD_MODEL_MODEL", str(tmp_path / "tiny"))
    monkeypatch.setenv("PREREAD_CONTEXT_MAX_TOKENS", "8")
    said = _output(name)
    assert all(words in said for words in SAYS[name])


@pytest.mark.skipif(not READER.exists(), reason="the reader's weights are not in this checkout")
@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_it_answers_with_the_bundled_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREREAD_MODEL_MODEL", raising=False)
    said = _output(name)
    assert all(words in said for words in (*SAYS[name], *ANSWERS[name]))
