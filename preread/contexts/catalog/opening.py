"""From the text of `store.catalog` to a catalog. Imports a client only when it is wanted."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from preread.contexts.catalog.base import Catalog
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.errors import ConfigError
from preread.store.tiers.urls import EXTRAS, TierUrl, parse_tiers

USED = frozenset({"deadline", "ca", "cert", "key", "insecure"}) | {
    "endpoint", "region", "account", "anonymous", "http"
}  # fmt: skip
HINT = "Write store.catalog like redis://host:6379/0 or s3://bucket/prefix; empty: the home's own."


def open_catalog_at(text: str, file: Path, busy_timeout_s: float = 30.0) -> Catalog:
    """The catalog at a URL (redis://, rediss://, redis+cluster://, rediss+cluster://, s3://, gs://,
    az://), or for an empty text the SQLite file. Asks nobody. Raises ConfigError."""
    if not text.strip():
        return SqliteCatalog(file, busy_timeout_s)
    urls = parse_tiers(text)
    if len(urls) != 1:
        raise ConfigError("store.catalog names more than one place.", hint=HINT)
    url = urls[0]
    _check(url)
    if "redis" in url.scheme:
        from preread.contexts.catalog.redis import RedisCatalog
        from preread.contexts.catalog.redis_client import Client

        return RedisCatalog(Client(url))
    from preread.contexts.catalog.object import DEADLINE_S, ObjectCatalog
    from preread.store.tiers.bucket import open_bucket

    return ObjectCatalog(open_bucket(url, url.seconds("deadline", DEADLINE_S), folder="catalog"))


def _check(url: TierUrl) -> None:
    if url.scheme == "file":
        raise ConfigError(
            "A folder cannot hold a catalog: it knows no compare-and-swap.",
            hint="Leave store.catalog empty (SQLite in the home), or name a Redis or a bucket.",
        )
    if url.scheme not in EXTRAS:
        raise ConfigError(f"{url.scheme!r} is no place for a catalog.", hint=HINT)
    extra, package = EXTRAS[url.scheme]
    if find_spec(package) is None:
        raise ConfigError(
            f"store.catalog = {url.place} needs the package {package}.",
            hint=f"pip install 'preread[{extra}]'",
        )
    if unused := sorted(url.options.keys() - USED):
        raise ConfigError(
            f"store.catalog: {', '.join(unused)} mean nothing to a catalog.", hint="Leave them out."
        )
