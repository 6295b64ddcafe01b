"""Time that sleeping turns."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class TurnedClock:
    """See preread.providers.limits.Clock: `sleep` returns at once, later."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class LoopClock:
    """The running loop's time, which is no machine's in `run_virtual`."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Skipping(selectors.DefaultSelector):
    """Waits for nothing: the loop's time moves on instead."""

    time = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("Everybody waits, and nothing will come.")
        if not ready and timeout:
            self.time += timeout
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, selector: _Skipping) -> None:
        self._skipping = selector
        super().__init__(selector)

    def time(self) -> float:
        return self._skipping.time


def run_virtual(work: Coroutine[Any, Any, T]) -> T:
    """Run it in a loop where a minute of sleep takes no time, and all is the same every time."""
    loop = _VirtualLoop(_Skipping())
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
