"""What waits to run, read from the journal a little ahead and cut into blocks of one order."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from itertools import islice, takewhile

from preread.batch.journal import Journal
from preread.batch.pace import CHARACTERS
from preread.batch.schema import Waiting

LEAST = 16  # rows read at once, however long they are

Do = Callable[..., Awaitable[list[Waiting]]]


class Feed:
    """Of one model. do: calls a method of the journal in its thread."""

    def __init__(self, journal: Journal, model: bytes, do: Do) -> None:
        self._journal = journal
        self._model = model
        self._do = do
        self._waiting: deque[Waiting] = deque()
        self._cursor = 0
        self._mean = 0  # characters of a row of the last reading

    async def peek(self, most: int) -> list[Waiting]:
        """The rows that may run next in one batch; none at the end. They stay until `take`."""
        if not self._waiting:
            bounded = max(CHARACTERS // max(self._mean, 1), LEAST)
            n = min(most, bounded)
            rows = await self._do(self._journal.next, self._cursor, self._model, n)
            if not rows:
                return []
            self._waiting.extend(rows)
            self._cursor = rows[-1].no
            self._mean = sum(row.chars for row in rows) // len(rows)
        order, room = self._waiting[0].order, CHARACTERS + self._waiting[0].chars

        def fits(row: Waiting) -> bool:
            nonlocal room
            room -= row.chars
            return row.order == order and room >= 0

        return list(takewhile(fits, islice(self._waiting, most)))

    def take(self, n: int) -> None:
        """The first n are sent."""
        for _ in range(n):
            self._waiting.popleft()
