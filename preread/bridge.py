"""The one place where sync meets async: an event loop in a thread of its own.

Everything above the Backend is async; the public facade is sync and must also work where a loop is
already running (a notebook), so it never uses the caller's loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Owns one event loop in one daemon thread. `run` and `iterate` may be called from any other
    thread, also from several at once."""

    def __init__(self, name: str = "preread-loop") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result; Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """Pull an async iterator from sync code; leaving early closes it."""
        try:
            while True:
                item = self.run(_next(source))
                if isinstance(item, _End):
                    return
                yield item
        finally:
            close = getattr(source, "aclose", None)
            if close is not None and self._loop.is_running():
                self.run(close())

    def stop(self) -> None:
        """Stop the loop and join the thread. Idempotent."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _End:
    """The source is exhausted (StopAsyncIteration must not cross a future)."""


async def _next(source: AsyncIterator[T]) -> T | _End:
    try:
        return await anext(source)
    except StopAsyncIteration:
        return _End()
