"""The parts of a home that need no model: its catalog and its chunks. Quick to import."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path

from preread.config import Config
from preread.contexts.catalog.base import Catalog
from preread.contexts.catalog.opening import open_catalog_at
from preread.contexts.catalog.owned import OwnedCatalog, owner_prefix
from preread.contexts.catalog.scopes import owner_scope
from preread.contexts.claims.opening import open_claims_at
from preread.errors import ConfigError, HomeError
from preread.metrics import Metrics
from preread.store.claims import Claims
from preread.store.seal import Keyring
from preread.store.tiers.base import Room, Tier, fresh
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.store.tiers.urls import EXTRAS, TierUrl, parse_bytes, parse_tiers
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


def open_catalog(config: Config) -> Catalog:
    """Names, versions and sessions of this tenant: in this home, or where store.catalog shares
    them. The default tenant owns it. Raises ConfigError."""
    file = config.home / "catalog.sqlite"
    everybodys = open_catalog_at(config.store.catalog, file, config.context.busy_timeout_s)
    prefix = owner_prefix(config.store)
    return OwnedCatalog(everybodys, prefix, owner_scope(config.store) if prefix else "")


def open_claims(config: Config) -> Claims | None:
    """How the processes that share a catalog agree who computes what; None where none could load
    what another computes. Asks nobody."""
    if all(url.scheme == "ram" for url in parse_tiers(config.store.tiers)):
        return None
    return open_claims_at(config.store.catalog, config.home / "claims")


def open_tiers(config: Config, make: Room = fresh) -> list[Tier]:
    """Where the chunks of all models are kept, nearest first. make: memory for those that keep them
    in it. Asks nobody yet: a server that is down shows when it is used. Raises ConfigError, also
    when a package is missing."""
    return [_open_tier(url, config, make) for url in parse_tiers(config.store.tiers)]


def _open_tier(url: TierUrl, config: Config, make: Room = fresh) -> Tier:
    if url.scheme == "ram":
        budget = parse_bytes(url.path, url.name)
        return MemoryTier(budget=budget, share=url.nbytes("share"), name=url.name, make=make)
    if url.scheme == "disk":
        return _open_disk(url, config)
    extra, package = EXTRAS[url.scheme]
    if extra == "redis":  # the tier speaks for itself; only the catalog needs the package
        from preread.store.tiers.redis import open_redis

        return open_redis(url)
    if find_spec(package) is None:
        raise ConfigError(
            f"The tier {url.place} needs the package {package}, which is not installed.",
            hint=f"pip install 'preread[{extra}]'",
        )
    from preread.store.tiers.object import open_object

    return open_object(url)


def _open_disk(url: TierUrl, config: Config) -> DiskTier:
    """That of the home, where the URL names no folder."""
    root = Path(url.path).expanduser().absolute() if url.path else config.home / "kv"
    return DiskTier(
        root,
        name=url.name,
        budget=url.nbytes("budget", config.store.disk_budget_mb * 1024 * 1024),
        share=url.nbytes("share"),
        fsync=url.flag("fsync", config.store.fsync),
        window=url.count("window", 0),
        deadline_s=url.seconds("deadline"),
    )


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
    return Upkeep(open_tiers(config), Metrics())


def open_sweeper(config: Config, *, shared: bool = False) -> tuple[Upkeep, tuple[str, ...]]:
    """Sweeps the tiers whose every user keeps its names in this catalog, as far as can be known;
    and the places of those left out: servers and buckets, where the catalog is the home's own.
    shared: none is."""
    urls = parse_tiers(config.store.tiers)
    far = [url for url in urls if url.scheme not in ("ram", "disk")]
    left = [] if shared or config.store.catalog.strip() else far
    tiers = [_open_tier(url, config) for url in urls if url not in left]
    return Upkeep(tiers, Metrics()), tuple(url.place for url in left)
