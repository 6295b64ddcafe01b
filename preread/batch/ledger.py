"""What requests of a run may be billed until that is known: each is reserved in the budget and
written down before it is sent, and settled when the row's result is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from preread.backend import Billed
from preread.batch.budget import NONE, Budget, Reserved
from preread.batch.slate import BILLED, UNSURE, Owed, Slate
from preread.batch.tally import Tally

NOTHING = Billed()


@dataclass(slots=True, eq=False)
class _Row:
    """sums: as on the slate, of the requests of one row; held: reserved for them."""

    sums: list[int] = field(default_factory=lambda: [0] * 6)
    held: Reserved = NONE
    settled: bool = False


class Ledger:
    """Of all requests of one run. Invariants: nothing is sent that the budget has no room for, at
    its most, beside all that was spent or may have been; the slate holds what was sent and is not
    settled. All methods from one event loop."""

    def __init__(
        self, budget: Budget, tally: Tally, slate: Slate, used_up: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:  # fmt: skip
        """used_up: called once, when there is no room for a request and nothing that might make
        some; failed: the slate cannot be written."""
        self.slate = slate
        self._budget = budget
        self._tally = tally
        self._used_up = used_up
        self._failed = failed
        self._live = 0  # reserved for, and the outcome is still to come
        self._waiting: deque[tuple[tuple[int, int], asyncio.Future[Reserved | None]]] = deque()
        self._shut = False
        self._share, self._unsure, self._billed = [0] * 6, [0] * 2, [0] * 4

    async def reserve(self, most: tuple[int, int]) -> Reserved | None:
        """Room for a request of (input, output) tokens at most, in the order of asking; None: no
        more."""
        if self._shut:
            return None
        held = None if self._waiting else self._budget.hold(most, self._tally)
        if held is not None:
            self._live += 1
            return held
        turn: asyncio.Future[Reserved | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((most, turn))
        self._wake()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and (held := turn.result()) is not None:
                self.ended(held)
            raise

    def ended(self, unused: Reserved = NONE) -> None:
        """An attempt is over, and so much was reserved for nothing."""
        self._live -= 1
        self.give(unused)

    def give(self, held: Reserved) -> None:
        self._budget.let_go(held)
        self._wake()

    def write(self, share: list[int], times: int = 1) -> bool:
        """On the slate; False: it could not be, and the run ends."""
        try:
            self.slate.add(share, times)
        except OSError as exc:
            self._shut = True
            self._failed(exc)
            return False
        return True

    def price(self, counts: Billed) -> Reserved:
        return self._budget.price(counts, self._tally.prices)

    def settle(self, row: _Row, counted: Billed = NOTHING) -> None:
        """Nothing more is to come of a row; counted: by its result."""
        row.settled = True
        beyond = [max(a - b, 0) for a, b in zip(row.sums[BILLED], counted, strict=True)]
        for sums, more in (
            (self._share, row.sums), (self._unsure, row.sums[UNSURE]), (self._billed, beyond),
        ):  # fmt: skip
            sums[:] = [a + b for a, b in zip(sums, more, strict=True)]
        self._tally.doubt(*row.sums[UNSURE])
        self._tally.spend(*beyond)
        self.give(row.held)

    def owed(self) -> Owed | None:
        """What was settled since this was last asked."""
        if not any(self._share):
            return None
        owed = Owed(self._share, self._unsure, self._billed)
        self._share, self._unsure, self._billed = [0] * 6, [0] * 2, [0] * 4
        return owed

    def _wake(self) -> None:
        while self._waiting:
            most, turn = self._waiting[0]
            held = None
            if not (turn.done() or self._shut):
                held = self._budget.hold(most, self._tally)
                if held is None and self._live:
                    return
                self._live += held is not None
            self._waiting.popleft()
            if turn.done():
                continue
            turn.set_result(held)
            if held is None and not self._shut:
                self._shut = True
                self._used_up()


class Bills:
    """The rows of one batch. See preread.backend.Spending."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._rows: dict[int, _Row] = {}
        self.closed = False

    async def attempt(self, row: int, most: tuple[int, int]) -> Entry | None:
        held = await self._ledger.reserve(most)
        return None if held is None else Entry(self._ledger, self, row, most, held)

    def of(self, row: int) -> _Row:
        if row not in self._rows:
            self._rows[row] = _Row()
        return self._rows[row]

    def settle(self, row: int, counted: Billed) -> None:
        """A row has ended; counted: by its result, nothing where none is kept."""
        if (known := self._rows.pop(row, None)) is not None:
            self._ledger.settle(known, counted)

    def close(self) -> None:
        """The batch is over: nothing is sent any more, what has no answer will have none."""
        self.closed = True
        while self._rows:
            self._ledger.settle(self._rows.popitem()[1])


class Entry:
    """See preread.backend.Attempt."""

    __slots__ = ("_bills", "_held", "_ledger", "_most", "_number", "_row", "_told")

    def __init__(
        self, ledger: Ledger, bills: Bills, number: int, most: tuple[int, int], held: Reserved
    ) -> None:
        self._ledger, self._bills, self._number = ledger, bills, number
        self._most, self._held = most, held
        self._row: _Row | None = None  # from when it is sent
        self._told = False

    def sent(self) -> bool:
        if self._bills.closed or not self._ledger.write([*self._most, 0, 0, 0, 0]):
            return False
        self._row = self._bills.of(self._number)
        self._move([*self._most, 0, 0, 0, 0], self._held)
        return True

    def free(self) -> None:
        self._known([0, 0, 0, 0], NONE)

    def billed(self, counts: Billed) -> None:
        self._known(counts, self._ledger.price(counts))

    def over(self) -> None:
        self._ledger.ended(NONE if self._row else self._held)

    def _known(self, counts: tuple[int, ...] | list[int], price: Reserved) -> None:
        """It is in doubt no longer. Once its row is settled it is too late: it counts at most."""
        if self._row is None or self._row.settled or self._told:
            return
        share = [-self._most[0], -self._most[1], *counts]
        if not self._ledger.write(share):
            return
        self._told = True
        self._move(share, price.minus(self._held))
        self._ledger.give(self._held.minus(price))

    def _move(self, share: list[int], held: Reserved) -> None:
        assert self._row is not None
        self._row.sums = [a + b for a, b in zip(self._row.sums, share, strict=True)]
        self._row.held = self._row.held.plus(held)
