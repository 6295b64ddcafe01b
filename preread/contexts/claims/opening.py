"""Claims where the catalog is: who shares its names shares the work."""

from __future__ import annotations

from pathlib import Path

from preread.contexts.claims.files import FileClaims
from preread.store.claims import Claims
from preread.store.tiers.urls import parse_tiers


def open_claims_at(text: str, folder: Path) -> Claims:
    """For the text of `store.catalog`, which open_catalog_at has found good; empty: the folder of a
    home. Asks nobody."""
    if not text.strip():
        return FileClaims(folder)
    (url,) = parse_tiers(text)
    if "redis" in url.scheme:
        from preread.contexts.catalog.redis_client import Client
        from preread.contexts.claims.redis import RedisClaims

        return RedisClaims(Client(url))
    from preread.contexts.catalog.object import DEADLINE_S
    from preread.contexts.claims.object import ObjectClaims
    from preread.store.tiers.bucket import open_bucket

    return ObjectClaims(open_bucket(url, url.seconds("deadline", DEADLINE_S), folder="claims"))
