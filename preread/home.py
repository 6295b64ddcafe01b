"""The parts of a home that need no model: its catalog and its chunks. Quick to import."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from preread.config import Config
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.errors import ConfigError, HomeError
from preread.metrics import Metrics
from preread.store.seal import Keyring
from preread.store.tiers.disk import DiskTier
from preread.store.upkeep import Upkeep

log = logging.getLogger("preread")


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


def open_keyring(config: Config) -> Keyring | None:
    """The keys that seal chunks; None: chunks are plain. Raises ConfigError."""
    store = config.store
    if store.key and store.key_file:
        raise ConfigError(
            "store.key (or $PREREAD_KEY) and store.key_file are both set.", hint="Remove one."
        )
    if store.key:
        return Keyring.parse(store.key, "store.key or $PREREAD_KEY")
    if not store.key_file:
        return None
    path = config.home / Path(store.key_file).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        if path.stat().st_mode & 0o077:
            log.warning("%s: others may read these keys. chmod 600 %s", path, path)
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"{path}: the key file cannot be read: {why}.",
            hint="Mend store.key_file, or make one: openssl rand -hex 32",
        ) from exc
    return Keyring.parse(text, str(path))


def open_upkeep(config: Config) -> Upkeep:
    """Verifies and sweeps the chunks of this home."""
    return Upkeep([open_disk(config)], Metrics())
