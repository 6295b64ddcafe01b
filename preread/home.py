"""The parts of a home that need no model: its catalog and its chunks. Quick to import."""

from __future__ import annotations

from preread.config import Config
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.metrics import Metrics
from preread.store.tiers.disk import DiskTier
from preread.store.upkeep import Upkeep


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
