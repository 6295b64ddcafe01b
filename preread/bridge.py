"""The one place where sync meets async: an event loop in a thread of its own.

Everything above the Backend is async; the public facade is sync and must also work where a loop is
already running (a notebook), so it never uses the caller's loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

from preread.errors import Cancelled, EngineError

T = TypeVar("T")


class LoopThread:
    """Owns one event loop in one daemon thread. `run` and `iterate` may be called from any other
    thread, also from several at once."""

    def __init__(self, name: str = "preread-loop") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        self._guard = threading.Lock()
        self._stopped = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result; Ctrl-C cancels it. Raises EngineError
        after `stop`, Cancelled when `stop` came in between."""
        future = self._start(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise
        except CancelledError:
            raise _closed() from None

    async def reach(self, work: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine of this loop from any other one; cancelling the wait cancels it.
        Raises as `run` does."""
        future = self._start(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the wait, not the work
                raise
            raise _closed() from None

    async def pull(self, source: AsyncIterator[T]) -> AsyncGenerator[T, None]:
        """Pull an async iterator of this loop from any other one; leaving early closes it."""
        pull = _Pull(source)
        try:
            while not isinstance(item := await self.reach(pull.next()), _End):
                yield item
        finally:
            with suppress(EngineError):
                await self.reach(pull.close())

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """Pull an async iterator from sync code; leaving early closes it."""
        pull = _Pull(source)
        try:
            while True:
                item = self.run(pull.next())
                if isinstance(item, _End):
                    return
                yield item
        finally:
            with suppress(EngineError):  # closed: nothing runs any more
                self.run(pull.close())

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._guard:
            if self._stopped:
                work.close()
                raise EngineError("The engine is closed.", hint="Open another: preread.open()")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """Cancel what runs, stop the loop and join the thread. Idempotent."""
        with self._guard:
            if self._stopped:
                return
            self._stopped = True
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _closed() -> Cancelled:
    return Cancelled("The engine was closed before this was done.", hint="Run it again.")


class _End:
    """The source is exhausted (StopAsyncIteration must not cross a future)."""


class _Pull(Generic[T]):
    """One async iterator, pulled item by item."""

    def __init__(self, source: AsyncIterator[T]) -> None:
        self._source = source
        self._task: asyncio.Task[Any] | None = None

    async def next(self) -> T | _End:
        self._task = asyncio.current_task()
        try:
            return await anext(self._source)
        except StopAsyncIteration:
            return _End()

    async def close(self) -> None:
        """Ctrl-C may come before `run` knows what to cancel, so the last step is ended here."""
        if (task := self._task) is not None and not task.done():
            if not task.cancelling():  # its clean-up must not be cancelled in turn
                task.cancel()
            await asyncio.wait([task])
        if close := getattr(self._source, "aclose", None):
            await close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
