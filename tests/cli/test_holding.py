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


def test_gc_leaves_what_other_catalogs_may_know(
    call: Call, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two homes, each with a catalog of its own, on one object store."""
    monkeypatch.setenv("PREREAD_TIERS", f"file://{tmp_path / 'far'}")
    built = one_json(call("build", "handbook", str(docs), "--json"))
    monkeypatch.setenv("PREREAD_HOME", str(tmp_path / "other"))
    freed = one_json(call("gc", "--grace", "0", "--json"))
    assert freed["removed"] == 0 and len(freed["tiers_left"]) == 1
    told = call("gc", "--grace", "0")
    assert "left alone" in told.stderr and "preread gc --shared" in told.stderr
    swept = one_json(call("gc", "--grace", "0", "--shared", "--json"))
    assert swept["removed"] > 0 and swept["tiers_left"] == [] and built["tokens"] > 0
