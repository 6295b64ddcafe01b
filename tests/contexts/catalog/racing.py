"""Several processes publish versions of one name; each version has one winner."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from preread.contexts.catalog.base import Catalog
from preread.errors import CatalogConflict
from preread.testing.conformance_catalog import record

WRITERS, VERSIONS = 3, 5


def build_versions(
    open_at: Callable[[Any], Catalog], place: Any, writer: int, start: Any, won: Any
) -> None:
    """What one of several builders does: publish on top of what it sees, five times."""
    catalog = open_at(place)
    start.wait()
    for version in range(1, VERSIONS + 1):
        try:
            catalog.put(record(version=version, text=f"by {writer}"), expected=version - 1)
            won.put((version, writer))
        except CatalogConflict:
            won.put((0, writer))


def race(open_at: Callable[[Any], Catalog], place: Any) -> None:
    """open_at(place): the catalog, in a process of its own."""
    processes = multiprocessing.get_context("spawn")
    start, won = processes.Barrier(WRITERS), processes.Queue()
    builders = [
        processes.Process(target=build_versions, args=(open_at, place, n, start, won))
        for n in range(WRITERS)
    ]
    for builder in builders:
        builder.start()
    results = [won.get(timeout=60) for _ in range(WRITERS * VERSIONS)]
    for builder in builders:
        builder.join()
    winners = {version: writer for version, writer in results if version}
    assert len(winners) == sum(1 for version, _ in results if version)
    catalog = open_at(place)
    newest = catalog.get("handbook")
    assert newest and newest.version == max(winners)
    for version, writer in winners.items():
        assert catalog.get("handbook", version) == record(version=version, text=f"by {writer}")
