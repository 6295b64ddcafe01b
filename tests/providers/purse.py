"""Who pays, for tests: has room for everything, and remembers what every row may have cost."""

from __future__ import annotations

from collections import Counter, defaultdict

from preread.backend import Attempt, Billed


class Purse:
    """See preread.backend.Spending. sent: requests by row; unsure: (input, output) tokens, at most,
    of those without an outcome; billed: of those with an answer."""

    def __init__(self) -> None:
        self.sent = Counter[int]()
        self.unsure: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        self.billed: dict[int, list[Billed]] = defaultdict(list)
        self.open = 0  # attempts that are not over

    async def attempt(self, row: int, most: tuple[int, int]) -> Attempt | None:
        self.open += 1
        return _Attempt(self, row, most)

    @property
    def doubts(self) -> dict[int, tuple[int, int]]:
        return {row: (a, b) for row, (a, b) in self.unsure.items() if a or b}


class _Attempt:
    def __init__(self, purse: Purse, row: int, most: tuple[int, int]) -> None:
        self._purse, self._row, self._most = purse, row, most

    def _add(self, times: int) -> None:
        for i, n in enumerate(self._most):
            self._purse.unsure[self._row][i] += n * times

    def sent(self) -> bool:
        self._purse.sent[self._row] += 1
        self._add(1)
        return True

    def free(self) -> None:
        self._add(-1)

    def billed(self, counts: Billed) -> None:
        self._add(-1)
        self._purse.billed[self._row].append(counts)

    def over(self) -> None:
        self._purse.open -= 1
