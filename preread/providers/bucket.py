"""One rate limit, counted as its provider counts it.

Two ways are known. A bucket refills evenly, so that a rested one lets a whole period's amount pass
at once and more from then on (Anthropic documents it: "your capacity is continuously replenished").
A window never holds more than the limit in any one period. Windows are what we begin with where
nobody says, because what fits every window of a period fits a bucket too; headers show the other
(`_shows`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

LATE = 1 / 50  # of the period, and at least
LATE_S = 1.0  # the most that a request is taken to have been on its way
MARGIN = 1 / 200  # of the period: the distance after a first refusal at the edge
DOUBTED = 1 / 10  # of the period: a bucket that needs more distance than this is none
LEAST_S = 1e-6  # that anyone waits: less may not move a clock
ALMOST = 0.8  # of a limit; a refusal beyond it says nothing of the pieces it is counted in
DAILY = 10  # a header that refills this many times slower than a period is not about a period
ALIKE = 0.1  # of a time until whole, and one unit of what remains, and
ROUNDED_S = 0.05  # on top: how far a header may be from what an even refill says
APART = 0.2  # of a limit: two such headers, because a window may be right once by chance


class Told(NamedTuple):
    """One limit in the headers of a response; -1: not said. reset_s: until it is whole again."""

    limit: int = -1
    remaining: int = -1
    reset_s: float = -1.0


@dataclass(slots=True, eq=False)
class Spent:
    """What one request took. at: when it was sent; late_s: how much later it may have arrived;
    landed: by now it has; used, taken, back, on_way: the bucket's sums when it was sent; alive:
    still part of the record."""

    at: float
    amount: int
    late_s: float
    used: int
    taken: int
    back: int
    on_way: int
    landed: bool = False
    alive: bool = True


def _sent(spent: Spent) -> float:
    return spent.at


class Bucket:
    """One limit. Invariants: the record's sum is `used`; level never exceeds the capacity.

    The level is that of a bucket from which each request takes only when it has arrived for sure:
    once it is answered, or as late as it may be. The provider's own holds at least as much, because
    what is taken earlier leaves more room to refill; less what is on its way, it may be spent.
    """

    def __init__(
        self, limit: int, period_s: float = 60.0, burst: float = 1.0, refills: bool = False
    ) -> None:
        """limit: most per period, 0: none yet known; burst: the share of it that may be sent at
        once; refills: it is known to refill evenly."""
        self.given = limit
        self.limit = limit
        self.period_s = period_s
        self.burst = burst
        self.refills = refills
        self.used = 0
        self.margin_s = 0.0
        self._late_s = max(period_s * LATE, LATE_S)
        self._level = self._full
        self._at = 0.0
        self._changed = -1.0  # when a refusal last made us more careful
        self._matched = -1.0  # the share that was gone when a header spoke of an even refill
        self._taken = self._back = 0
        self._record: deque[Spent] = deque()
        self._flying: deque[Spent] = deque()
        self._on_way = 0  # amounts of those that have not landed

    @property
    def capacity(self) -> float:
        """What the provider lets pass at once."""
        return max(1.0, self.limit * self.burst)

    @property
    def _full(self) -> float:
        """What we send at once: less, after refusals at the edge."""
        return max(1.0, self.capacity - self._refill(self.margin_s))

    def wait_s(self, amount: int, now: float) -> float:
        """Seconds until so much may be taken; 0: now. More than the capacity waits for a full
        bucket."""
        if not self.limit:
            return 0.0
        self._pass(now)
        short = min(amount, self._full) - self._left
        refill = max(short * self.period_s / self.limit, LEAST_S) if short > 1e-9 else 0.0
        return refill if self.refills else max(refill, self._window_s(amount, now))

    def take(self, amount: int, now: float) -> Spent:
        """Reserve; the caller has waited."""
        self._pass(now)
        self._taken += amount
        self.used += amount
        spent = Spent(now, amount, self._late_s, self.used, self._taken, self._back, self._on_way)
        self._record.append(spent)
        self._flying.append(spent)
        self._on_way += amount
        return spent

    def settle(
        self, spent: Spent, reserved: int, actual: int, now: float, took_s: float = -1.0
    ) -> None:
        """It was answered: give back what was reserved and not used, or take what was used beyond
        it. took_s: from when it was sent until then; it has not arrived later."""
        self._pass(now)
        back = reserved - actual
        self._land(spent, reserved)
        self._level = min(self.capacity, self._level + back)
        self._back += back
        if took_s >= 0:
            spent.late_s = min(self._late_s, took_s)
        if spent.alive:
            spent.amount -= back
            self.used -= back

    def sync(self, told: Told, spent: Spent | None, now: float) -> None:
        """Believe a response's headers: its limit where ours is unknown or larger, how it counts,
        and what was left when the request came. spent: what the request took, if that is known."""
        if told.limit <= 0 or self._daily(told):
            return
        self._pass(now)
        if not self.limit:
            self.limit = told.limit
            self._level = self._full
        else:
            self.limit = min(told.limit, self.given) if self.given else told.limit
            self._level = min(self._level, self.capacity)  # a smaller one holds less
        if told.remaining >= 0:
            if told.limit == self.limit:
                self._shows(told)
            if self.refills or self._others(told, spent):
                self._level -= max(0.0, self._left - self._at_most(told, spent, now))
            believed = self.refills and told.limit == self.limit and self.burst == 1.0
            if believed and spent is not None:
                self._level += max(0.0, self._at_least(told, spent) - self._left)
                self._level = min(self._level, self.capacity)

    def narrow(self, sent: float, now: float) -> None:
        """A refusal of what was sent then. Where there was room, the provider counts in smaller
        pieces than periods; at the edge, a bucket's refill was believed too early, or wrongly."""
        if not self.limit or sent <= self._changed:
            return  # of those that were under way together, one says it
        if self.used <= ALMOST * self.limit:
            self.burst = max(self.burst / 2, 1 / 60)
        elif self.refills and self.margin_s < DOUBTED * self.period_s:
            more_s = self.margin_s or MARGIN * self.period_s
            self._level -= self._refill(more_s)
            self.margin_s += more_s
        elif self.refills:
            self.refills, self._matched = False, 2.0  # not to be shown again
        else:
            return  # it came a moment too early
        self._changed = now
        self._level = min(self._level, self._full)

    def check(self) -> None:
        assert self.used == sum(spent.amount for spent in self._record)
        assert self._level <= self.capacity + 1e-6
        assert self._on_way == sum(s.amount for s in self._flying if not s.landed)

    @property
    def _left(self) -> float:
        return self._level - self._on_way

    def _land(self, spent: Spent, reserved: int) -> None:
        if not spent.landed:
            spent.landed = True
            self._level -= reserved
            self._on_way -= reserved

    def _refill(self, seconds: float) -> float:
        return seconds * self.limit / self.period_s

    def _pass(self, now: float) -> None:
        """Refill for the time that went by, and forget what is older than a period."""
        gained = self._refill(max(0.0, now - self._at))
        self._level = max(self._level, min(self._full, self._level + gained))
        self._at = max(now, self._at)
        late_s = self._late_s if self.burst == 1.0 else 0.0  # a guess is distance enough
        while self._flying and (self._flying[0].landed or self._flying[0].at + late_s <= now):
            flown = self._flying.popleft()
            self._land(flown, flown.amount)
        while self._record and self._free_at(self._record[0]) <= now:
            old = self._record.popleft()
            old.alive = False
            self.used -= old.amount

    def _free_at(self, spent: Spent) -> float:
        return spent.at + self.period_s + spent.late_s

    def _window_s(self, amount: int, now: float) -> float:
        """Seconds until the record has room for so much."""
        excess = self.used + min(amount, self.limit) - self.limit
        wait = 0.0
        for spent in self._record:
            if excess <= 0:
                return wait
            excess -= spent.amount
            wait = max(wait, self._free_at(spent) - now, LEAST_S)
        return wait

    def _others(self, told: Told, spent: Spent | None) -> bool:
        """Whether more was used than by us alone."""
        ours = self.used
        if spent is not None:
            ours = spent.used + self._taken - spent.taken + self._back - spent.back
        return told.limit - told.remaining > ours

    def _at_most(self, told: Told, spent: Spent | None, now: float) -> float:
        """What can be left, by what was left when a request came: with all that has refilled and
        was given back since it was sent, and without what was sent so much later that it must have
        come after it (others may use the same organisation)."""
        if spent is None:
            return told.remaining
        later = bisect_left(self._record, spent.at + self._late_s, key=_sent)
        if not later:
            return self._level  # it was sent longer than a period ago
        since = self._taken - self._record[later - 1].taken
        return told.remaining - since + self._back - spent.back + self._refill(now - spent.at)

    def _at_least(self, told: Told, spent: Spent) -> float:
        """What is left for sure: without all that was on its way when this was sent, and all that
        was sent since."""
        return told.remaining - spent.on_way - (self._taken - spent.taken)

    def _shows(self, told: Told) -> None:
        """How it counts: of an even refill, what is gone comes back at the limit's own pace, at
        every moment. A window's end has nothing to do with what is gone."""
        gone = 1 - told.remaining / told.limit
        even_s = gone * self.period_s
        if told.reset_s < 0 or gone <= 0 or self.refills or self._matched > 1:
            return
        slack = ALIKE * even_s + self.period_s / told.limit + ROUNDED_S
        if abs(told.reset_s - even_s) > slack:
            self._matched = -1.0
        elif self._matched < 0:
            self._matched = gone
        elif abs(gone - self._matched) >= APART:
            self.refills = True

    def _daily(self, told: Told) -> bool:
        """The header speaks of a day (Groq's requests do): it would need far longer to refill."""
        gone = told.limit - told.remaining
        if told.reset_s < 0 or told.remaining < 0 or gone <= 0:
            return False
        return told.reset_s * told.limit / gone > DAILY * self.period_s
