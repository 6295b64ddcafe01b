"""`list --tiers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.cli.conftest import one_json

Call = Callable[..., Result]


def test_what_tiers_hold(
    call: Call, home: Path, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("build", "handbook", str(docs))
    monkeypatch.setenv("PREREAD_TIERS", f"disk,disk:{tmp_path / 'other'},redis://127.0.0.1:1")
    said = one_json(call("list", "--tiers", "--json"))
    (held,) = said["contexts"]
    near, other, gone = (tier["name"] for tier in said["tiers"])
    assert held["chunks"] > 0
    assert held["by_tier"] == {near: held["chunks"], other: 0, gone: None}
    assert said["tiers"][0]["nbytes"] > 0 and said["tiers"][2]["error"]
    told = call("list", "--tiers")
    row = next(line for line in told.stdout.splitlines() if line.startswith("handbook"))
    assert "100 %" in row and "0 %" in row and row.rstrip().endswith("?")
    assert gone in told.stderr
    for file in (home / "kv").rglob("*.kv"):
        file.unlink()
    assert one_json(call("list", "--tiers", "--json"))["contexts"][0]["by_tier"][near] == 0
