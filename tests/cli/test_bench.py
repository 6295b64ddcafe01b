"""`preread bench batch`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from preread.cli.main import app
from tests.providers.test_facade import served

from .conftest import one_json

Call = Callable[..., Result]
SMALL = ("bench", "batch", "--shared", "200", "--own", "60", "--sample", "4")


def test_no_command_hides_another() -> None:
    """Of two with one name the later would be called."""
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    names += [group.name for group in app.registered_groups]
    assert len(set(names)) == len(names) and {"bench", "batch", "plan"} <= set(names)


def test_all_modes_in_one_run(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    value = one_json(call(*SMALL, "-n", "12", "--loads", "50", "-o", file, "--json"))
    assert json.loads(file.read_text()) == value
    base, keep, full = (value["modes"][m] for m in ("baseline", "keep-alive", "full"))
    assert base["measured"]["ran"] == keep["measured"]["ran"] == 4
    assert base["measured"]["loads"] == 2 and base["all"]["loads"] == 6
    assert keep["all"]["loads"] == full["all"]["loads"] == 1
    assert base["measured"]["cached"] == keep["measured"]["cached"] == 0
    assert full["measured"]["ran"] == full["measured"]["hits"] == 12
    assert full["measured"]["cached"] >= 12 * value["job"]["shared"]
    assert base["all"]["extrapolated"] and not full["all"]["extrapolated"]
    assert value["computed_share"] < 0.6 and value["times_as_fast_as"]["baseline"] > 0
    assert full["170000"]["requests"] == 170_000 and full["170000"]["extrapolated"]


def test_the_expectations_are_shown_for_the_job_they_are_about(call: Call) -> None:
    done = call("bench", "batch", "-n", "100", "--sample-full", "2", "--mode", "full")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    (claim,) = (line for line in lines if line[:3] == ["full", "expected", "7,000"])
    assert claim[3:] == ["99.0%", "1", "12.0", "s", "8.33"]
    assert any(line[:4] == ["corrected", "7,000", "96.6%", "1"] for line in lines)
    assert any(line[:3] == ["measured", "on", "2"] for line in lines)
    assert "cost 348.50" in done.output and "8.50" in done.output


def test_another_job_has_no_expectations(call: Call) -> None:
    done = call(*SMALL, "-n", "4", "--mode", "full", "--out", "2")
    assert done.exit_code == 0 and "expected" not in done.output
    assert "170,000 requests, extrapolated" in done.output and "2 tokens out" in done.output


def test_another_server(call: Call) -> None:
    with served(server="vllm", limit=4096, min_prefix=16, block=16) as server:
        value = one_json(call(*SMALL, "-n", "8", "--backend", f"openai:{server.url}", "--json"))
    base, full = value["modes"]["baseline"], value["modes"]["full"]
    assert base["measured"]["loads"] is None  # the server's own business
    assert base["measured"]["cached"] < full["measured"]["cached"]
    assert full["measured"]["hits"] >= 7
