"""Have the KV of a context in memory before anybody asks."""

from __future__ import annotations

import asyncio

from preread.backend import Backend, Progress
from preread.contexts.opened import Opened
from preread.types import Built, summed


async def warm(
    backend: Backend, opened: Opened, *, lease_s: float = 0.0, progress: Progress | None = None
) -> Built:
    """Every shard's prefix is loaded from the nearest tier that has it, or computed, and stays in
    memory for `lease_s` (as configured, if that is longer) where memory allows. Returns what that
    took, over all shards. Raises StateError when the context may not answer any more."""
    await asyncio.to_thread(opened.check)  # what it finds may want this loop
    shards = opened.record.shards
    total, done = opened.record.tokens, 0
    built: list[Built] = []
    for number, shard in enumerate(shards):

        def report(ready: int, _of: int, before: int = done) -> None:
            if progress:
                progress(before + ready, total)

        built.append(await backend.build(opened.prefix(number), lease_s=lease_s, progress=report))
        done += shard.tokens
    if opened.counting is not None:
        opened.counting.brought(one.brought for one in built)
    return summed(built)
