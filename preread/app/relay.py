"""Progress of an awaited piece of work, told as it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from preread.backend import Progress

T = TypeVar("T")


async def relayed(
    work: Callable[[Progress], Coroutine[Any, Any, T]],
) -> AsyncGenerator[tuple[int, int] | T, None]:
    """What `work` tells, from whichever thread, then its result. Leaving early cancels it."""
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()

    def progress(ready: int, total: int) -> None:
        loop.call_soon_threadsafe(told.put_nowait, (ready, total))

    task = asyncio.ensure_future(work(progress))
    task.add_done_callback(lambda _: told.put_nowait(None))
    try:
        while (news := await told.get()) is not None:
            yield news
        yield await task
    finally:
        task.cancel()
