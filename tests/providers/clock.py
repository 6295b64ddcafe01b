"""A clock that sleeping turns."""

from __future__ import annotations


class TurnedClock:
    """See preread.providers.limits.Clock: `sleep` returns at once, later."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
