"""The parts of a home that need no model: its catalog and its chunks. Quick to import."""

from __future__ import annotations

import os
from pathlib import Path

from preread.config import Config
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.errors import HomeError
from preread.metrics import Metrics
from preread.store.tiers.disk import DiskTier
from preread.store.upkeep import Upkeep


def make_home(home: Path) -> None:
    """Create the folder. Raises HomeError; called before anything is computed."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise HomeError(
            f"{home}: cannot be the home folder: {exc.strerror}.",
            hint="Set PREREAD_HOME to a folder that can be written.",
        ) from exc


def check_writable(home: Path) -> None:
    """Raises HomeError, before a build has computed what it could not keep."""
    make_home(home)
    if not os.access(home, os.W_OK | os.X_OK):
        raise HomeError(
            f"{home}: this home cannot be written.",
            hint="Mend its permissions, or set PREREAD_HOME to another folder.",
        )


def open_catalog(config: Config) -> SqliteCatalog:
    """Names, versions and sessions of this home."""
    return SqliteCatalog(config.home / "catalog.sqlite", config.context.busy_timeout_s)


def open_disk(config: Config) -> DiskTier:
    """The chunks of this home, of all models."""
    budget = config.store.disk_budget_mb * 1024 * 1024
    return DiskTier(config.home / "kv", budget=budget, fsync=config.store.fsync)


def open_upkeep(config: Config) -> Upkeep:
    """Verifies and sweeps the chunks of this home."""
    return Upkeep([open_disk(config)], Metrics())
