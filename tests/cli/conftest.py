"""A tiny random model and a few documents for the commands to work on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from preread.cli.main import app
from preread.cli.output import fail
from preread.testing.models import write_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_model(path, "qwen3", seed=1)
    return path


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "leave.md").write_text("# Leave\n\nStaff get 25 days of leave.\nAsk Ann.\n")
    (folder / "travel.md").write_text("# Travel\n\nTrains before planes.\n")
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Callable[..., Result]:
    """Run a command in this process, as `main` would: errors become exit codes."""
    monkeypatch.setenv("PREREAD_MODEL_MODEL", str(tiny))
    monkeypatch.setenv("PREREAD_CONTEXT_MAX_TOKENS", "8")

    def run(*arguments: str | Path, stdin: str | None = None) -> Result:
        texts = [str(a) for a in arguments]
        result = CliRunner().invoke(app, texts, input=stdin, standalone_mode=False)
        result.exit_code = result.exit_code or int(result.return_value or 0)
        if result.exception and not isinstance(result.exception, SystemExit):
            result.exit_code = fail(result.exception, json=False)
            result.message = str(result.exception)  # type: ignore[attr-defined]
        return result

    return run


def one_json(result: Result) -> dict[str, Any]:
    """The one JSON object a command printed, and nothing else on stdout."""
    assert result.exit_code == 0, result.output
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 1, result.stdout
    value: dict[str, Any] = json.loads(lines[0])
    return value


def preread(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    import os

    command = [sys.executable, "-m", "preread", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
