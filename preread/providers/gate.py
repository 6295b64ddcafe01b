"""How many requests are under way at once: more while all goes well, fewer when the server says
that it is too much (additive increase, multiplicative decrease; doubling at first)."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

CUT = 0.7


class Gate:
    """Invariant: `running` is the number of those inside."""

    def __init__(self, most: int, start: int = 32, least: int = 1) -> None:
        self.most = most
        self.least = least
        self.limit = float(min(start, most))
        self.running = 0
        self._doubling = True
        self._fresh = 0  # answers still to come that were asked before the last cut
        self._waiting: deque[asyncio.Future[None]] = deque()

    def at_most(self, most: int) -> None:
        """No more than so many from now on: others would only wait at the server, and their time
        runs."""
        self.most = max(self.least, min(self.most, most))
        self.limit = min(self.limit, float(self.most))

    async def __aenter__(self) -> None:
        if self.running < int(self.limit) and not self._waiting:
            self.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # who leaves hands over the place
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            elif turn in self._waiting:  # who left at the same moment may have taken it out
                self._waiting.remove(turn)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self._fresh = max(0, self._fresh - 1)
        self._leave()

    def went_well(self) -> None:
        """A request was answered: one more at once for each (doubling), or for each round."""
        grown = self.limit + (1.0 if self._doubling else 1.0 / self.limit)
        self.limit = min(float(self.most), grown)

    def was_too_much(self) -> None:
        """The server was overloaded or too slow. Once per round: those that were under way before
        the last cut say nothing about the new number."""
        if self._fresh:
            return
        self._doubling = False
        self.limit = max(float(self.least), self.limit * CUT)
        self._fresh = self.running

    def _leave(self) -> None:
        self.running -= 1
        while self._waiting and self.running < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)
