"""The tiers of a configuration, opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from preread import home
from preread.config import Config
from preread.errors import ConfigError, TierError
from preread.home import open_tiers, open_upkeep
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.testing.conformance_tier import get, put


def config_of(folder: Path, tiers: str) -> Config:
    config = Config(home=folder)
    return replace(config, store=replace(config.store, tiers=tiers, disk_budget_mb=7))


def test_the_home_alone_when_nothing_is_said(tmp_path: Path) -> None:
    (disk,) = open_tiers(Config(home=tmp_path))
    assert isinstance(disk, DiskTier) and disk.usage().budget == 10 * 2**30
    put(disk, 1, b"x")
    assert [p.name[-3:] for p in (tmp_path / "kv").rglob("*") if p.is_file()] == [".kv"]


def test_nearest_first_with_their_budgets(tmp_path: Path) -> None:
    far = tmp_path / "far"
    tiers = open_tiers(config_of(tmp_path, f"ram:1MB,disk,disk:{far}?budget=2MiB&window=2"))
    assert [tier.name for tier in tiers] == ["ram", "disk", "disk-2"]
    assert [tier.usage().budget for tier in tiers] == [10**6, 7 * 2**20, 2 * 2**20]
    assert isinstance(tiers[0], MemoryTier)
    put(tiers[2], 1, b"x")
    assert far.is_dir() and not (tmp_path / "kv").exists()


def test_no_tiers_at_all(tmp_path: Path) -> None:
    assert open_tiers(config_of(tmp_path, "")) == []


def test_opening_asks_nobody(tmp_path: Path) -> None:
    """A server that is down is no reason not to start."""
    config = config_of(tmp_path, "redis://127.0.0.1:1,s3://nowhere/x?endpoint=http://127.0.0.1:1")
    assert [tier.name for tier in open_tiers(config)] == ["redis", "s3"]


def test_a_missing_package_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'preread\[object\]'"):
        open_tiers(config_of(tmp_path, "s3://b/c"))
    assert open_tiers(config_of(tmp_path, "redis://a"))[0].name == "redis"  # needs none


def test_upkeep_looks_after_all_of_them(tmp_path: Path) -> None:
    config = config_of(tmp_path, f"disk,disk:{tmp_path / 'far'}")
    for tier in open_tiers(config):
        put(tier, 1, b"x" * 300)
    assert open_upkeep(config).verify(deep=False).checked == 2
    assert open_upkeep(config).sweep(frozenset(), 0).removed == 2


def test_the_deadline_of_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    import time

    from preread.store.tiers import files

    (disk,) = open_tiers(config_of(tmp_path, "disk?deadline=50ms"))
    assert isinstance(disk, DiskTier)
    put(disk, 1, b"x")
    assert get(disk, 1) == b"x"
    go, preadv = threading.Event(), files.os.preadv
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "preadv", lambda *args: go.wait(60) and preadv(*args))
        with pytest.raises(TierError, match=r"within 0\.05 s"):
            get(disk, 1)
        go.set()
    until = time.monotonic() + 60
    while disk.hanging and time.monotonic() < until:  # when it has come back, so has the disk
        time.sleep(0.01)
    assert get(disk, 1) == b"x"
