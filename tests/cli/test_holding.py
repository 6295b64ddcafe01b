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


def test_show_says_what_is_kept_and_why_the_rest_is_not(
    call: Call, home: Path, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from preread.store.tiers.disk import DiskTier

    call("build", "handbook", str(docs))
    monkeypatch.setenv("PREREAD_TIERS", f"ram:1MB,disk,disk:{tmp_path / 'x'},redis://127.0.0.1:1")
    near, other, gone = one_json(call("show", "handbook", "--json"))["tiers"]
    assert near["held"] == near["chunks"] > 0 and near["gone"] == {}
    assert (other["held"], other["gone"]) == (0, {"never_stored": near["chunks"]})
    assert "127.0.0.1" in gone["error"]
    disk = DiskTier(home / "kv")
    disk.remove([next(iter(disk.scan())).key], quarantine=True)
    near, *_ = one_json(call("show", "handbook", "--json"))["tiers"]
    assert near["held"] == near["chunks"] - 1 and near["gone"] == {"corrupt": 1}
    assert "1 corrupt" in call("show", "handbook").stdout


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
