"""What requests of a run may be billed until that is known: each is reserved in the budget and
written down before it is sent, and settled when the row's result is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from preread.backend import Billed
from preread.batch.budget import NONE, Budget, Reserved
from preread.batch.slate import BILLED, UNSURE, Owed, Slate, Sums
from preread.batch.tally import Tally

NOTHING = Billed()


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
        self._shares: list[Sums] = []  # settled, as they are on the slate
        self._beyond: list[Sums] = []  # billed, and counted by no result

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
        if held is not NONE:
            self._budget.let_go(held)
        if self._waiting:
            self._wake()

    def write(self, share: Sums) -> bool:
        """On the slate; False: it could not be, and the run ends."""
        try:
            self.slate.add(share)
        except OSError as exc:
            self._shut = True
            self._failed(exc)
            return False
        return True

    def price(self, counts: Billed) -> Reserved:
        return self._budget.price(counts, self._tally.prices)

    def settle(self, entries: Sequence[Entry], counted: Billed = NOTHING) -> None:
        """Nothing more is to come of a row's requests; counted: by its result."""
        shares = [entry.share for entry in entries]
        self._shares += shares
        sums = tuple(map(sum, zip(*shares, strict=True))) if len(shares) > 1 else shares[0]
        if sums[0] or sums[1]:
            self._tally.doubt(*sums[UNSURE])
        if sums[BILLED] != counted:
            beyond = [max(a - b, 0) for a, b in zip(sums[BILLED], counted, strict=True)]
            self._beyond.append(beyond)
            self._tally.spend(*beyond)
        for entry in entries:
            entry.settled = True
            self.give(entry.held)

    def owed(self) -> Owed | None:
        """What was settled since this was last asked."""
        if not self._shares:
            return None
        share = [sum(column) for column in zip(*self._shares, strict=True)]
        beyond = [sum(column) for column in zip((0,) * 4, *self._beyond, strict=True)]
        self._shares, self._beyond = [], []
        return Owed(share, share[UNSURE], beyond)

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
        self._rows: dict[int, list[Entry]] = {}
        self.closed = False

    async def attempt(self, row: int, most: tuple[int, int]) -> Entry | None:
        held = await self._ledger.reserve(most)
        return None if held is None else Entry(self._ledger, self, row, most, held)

    def sent(self, row: int, entry: Entry) -> None:
        self._rows.setdefault(row, []).append(entry)

    def settle(self, row: int, counted: Billed) -> None:
        """A row has ended; counted: by its result, nothing where none is kept."""
        if (entries := self._rows.pop(row, None)) is not None:
            self._ledger.settle(entries, counted)

    def close(self) -> None:
        """The batch is over: nothing is sent any more, what has no answer will have none."""
        self.closed = True
        while self._rows:
            self._ledger.settle(self._rows.popitem()[1])


class Entry:
    """One request. See preread.backend.Attempt. share: of the slate, () until it is sent; held: in
    the budget; settled: its row has ended, and it is too late to say what it was."""

    __slots__ = ("_bills", "_ledger", "_most", "_row", "_told", "held", "settled", "share")

    def __init__(
        self, ledger: Ledger, bills: Bills, row: int, most: tuple[int, int], held: Reserved
    ) -> None:
        self._ledger, self._bills, self._row, self._most = ledger, bills, row, most
        self._told = self.settled = False
        self.share: Sums = ()
        self.held = held

    def sent(self) -> bool:
        share = (*self._most, 0, 0, 0, 0)
        if self._bills.closed or not self._ledger.write(share):
            return False
        self.share = share
        self._bills.sent(self._row, self)
        return True

    def free(self) -> None:
        self._known(NOTHING, NONE)

    def billed(self, counts: Billed) -> None:
        self._known(counts, self._ledger.price(counts))

    def over(self) -> None:
        self._ledger.ended(NONE if self.share else self.held)

    def _known(self, counts: Billed, price: Reserved) -> None:
        """It is in doubt no longer."""
        if not self.share or self.settled or self._told:
            return
        tokens, output = self._most
        if not self._ledger.write((-tokens, -output, *counts)):
            return
        self._told = True
        self.share = (0, 0, *counts)
        held, self.held = self.held, price
        if held is not NONE:
            self._ledger.give(held.minus(price))
