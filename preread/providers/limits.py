"""Rate limits as providers state them: so many requests and tokens per minute, for all keys of one
organisation together.

A request reserves what it may cost before it is sent and gives back what it did not use. Two things
hold it back: a token bucket that refills evenly (how providers enforce a limit), and a record of
what was sent lately, so that no window of a minute ever holds more than the limit (how a provider
that counts by windows would enforce it).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from preread.errors import RequestError

MARGIN = 1 / 100  # of the period, and at least
MARGIN_S = 0.2  # requests do not arrive as evenly as they are sent
ALMOST = 0.8  # of a limit; a refusal beyond it says nothing of the pieces it is counted in
SLOTS = 600  # per period: the record's resolution
NAP_S = 0.25  # longest sleep before looking again whether something was given back
DAILY = 10  # a header that refills this many times slower than a period is not about a period


class Clock(Protocol):
    """Time that tests can turn."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class WallClock:
    """The machine's own, monotonic seconds."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Cost(NamedTuple):
    """What a request takes from the limits. input: tokens that count against them."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Per period; 0: not known, then as the response headers say. tokens: input and output
    together; cached: tokens read from the provider's cache count too; burst: the share of a
    period's amount that may be sent at once."""

    requests: int = 0
    tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    period_s: float = 60.0
    cached: bool = True
    burst: float = 1.0


class Told(NamedTuple):
    """One limit in the headers of a response; -1: not said."""

    limit: int = -1
    remaining: int = -1
    reset_s: float = -1.0


@dataclass(slots=True)
class Spent:
    """What was taken in one slot of time; alive: still part of the record."""

    at: float
    amount: int
    alive: bool = True


class Bucket:
    """One limit. Invariants: the record's sum is `used`; level never exceeds the capacity."""

    def __init__(self, limit: int, period_s: float = 60.0, burst: float = 1.0) -> None:
        """limit: most per period, 0: none yet known."""
        self.given = limit
        self.limit = limit
        self.period_s = period_s
        self.burst = burst
        self.used = 0
        self._level = self.capacity
        self._at = 0.0
        self._record: deque[Spent] = deque()

    @property
    def capacity(self) -> float:
        """What may be taken at once."""
        return max(1.0, self.limit * self.burst)

    @property
    def _kept_s(self) -> float:
        """How long a slot stays in the record."""
        return self.period_s * (1 + 1 / SLOTS) + max(self.period_s * MARGIN, MARGIN_S)

    def wait_s(self, amount: int, now: float) -> float:
        """Seconds until so much may be taken; 0: now. More than the capacity waits for a full
        bucket."""
        if not self.limit:
            return 0.0
        self._pass(now)
        short = min(amount, self.capacity) - self._level
        refill = short * self.period_s / self.limit if short > 1e-9 else 0.0
        return max(refill, self._window_s(amount, now))

    def take(self, amount: int, now: float) -> Spent:
        """Reserve; the caller has waited."""
        self._pass(now)
        last = self._record[-1] if self._record else None
        if last is None or now - last.at > self.period_s / SLOTS:
            self._record.append(last := Spent(now, 0))
        last.amount += amount
        self.used += amount
        self._level -= amount
        return last

    def settle(self, spent: Spent, reserved: int, actual: int, now: float) -> None:
        """Give back what was reserved and not used, or take what was used beyond it."""
        self._pass(now)
        self._level = min(self.capacity, self._level + reserved - actual)
        if spent.alive:
            spent.amount += actual - reserved
            self.used += actual - reserved

    def sync(self, told: Told, sent: float, now: float) -> None:
        """Believe a response's headers: its limit where ours is unknown or larger, and what was
        left when the request was sent (others may use the same organisation)."""
        if told.limit <= 0 or self._daily(told):
            return
        self._pass(now)
        if not self.limit:
            self.limit = told.limit
            self._level = self.capacity
        elif not self.given or told.limit < self.given:
            self.limit = told.limit
        if told.remaining >= 0:
            refilled = (now - sent) * self.limit / self.period_s
            self._level = min(self._level, self.capacity, told.remaining + refilled)

    def narrow(self) -> None:
        """A refusal. Where there was room, the provider counts in smaller pieces than minutes."""
        if not self.limit or self.used > ALMOST * self.limit:
            return  # at the edge: it came a moment too early
        self.burst = max(self.burst / 2, 1 / 60)
        self._level = min(self._level, self.capacity)

    def check(self) -> None:
        assert self.used == sum(spent.amount for spent in self._record)
        assert self._level <= self.capacity + 1e-6

    def _pass(self, now: float) -> None:
        """Refill for the time that went by, and forget what is older than a period."""
        gained = max(0.0, now - self._at) * self.limit / self.period_s
        self._level, self._at = min(self.capacity, self._level + gained), max(now, self._at)
        while self._record and self._record[0].at + self._kept_s <= now:
            old = self._record.popleft()
            old.alive = False
            self.used -= old.amount

    def _window_s(self, amount: int, now: float) -> float:
        """Seconds until the record has room for so much."""
        excess = self.used + min(amount, self.limit) - self.limit
        for spent in self._record:
            if excess <= 0:
                return 0.0
            excess -= spent.amount
            wait = spent.at + self._kept_s - now
            if excess <= 0:
                return max(wait, 1e-6)
        return 0.0

    def _daily(self, told: Told) -> bool:
        """The header speaks of a day (Groq's requests do): it would need far longer to refill."""
        gone = told.limit - told.remaining
        if told.reset_s < 0 or told.remaining < 0 or gone <= 0:
            return False
        return told.reset_s * told.limit / gone > DAILY * self.period_s


@dataclass(slots=True)
class Lane:
    """One organisation at one provider and model: its limits, and the keys that share them."""

    name: str
    keys: Sequence[str] = field(repr=False)
    limits: Limits
    paused_until: float = 0.0
    turn: int = 0
    buckets: dict[str, Bucket] = field(init=False)

    def __post_init__(self) -> None:
        names = ("requests", "tokens", "input_tokens", "output_tokens")
        given, period, burst = self.limits, self.limits.period_s, self.limits.burst
        self.buckets = {name: Bucket(getattr(given, name), period, burst) for name in names}

    def wait_s(self, cost: Cost, now: float) -> float:
        wait = self.paused_until - now
        for name, n in amounts(cost).items():
            if self.buckets[name].limit:
                wait = max(wait, self.buckets[name].wait_s(n, now))
        return wait

    def next_key(self) -> str:
        self.turn += 1
        return self.keys[self.turn % len(self.keys)]


def amounts(cost: Cost) -> dict[str, int]:
    """What a request takes from each bucket."""
    both = cost.input + cost.output
    return {
        "requests": 1,
        "tokens": both,
        "input_tokens": cost.input,
        "output_tokens": cost.output,
    }


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to send one request. key: never shown; spent: of the limits that are known."""

    lane: Lane
    key: str = field(repr=False)
    cost: Cost
    sent: float
    spent: dict[str, Spent] = field(repr=False)


class Limiter:
    """Lets requests pass in the order they came, through the lane that is free first."""

    def __init__(self, lanes: Sequence[Lane], clock: Clock | None = None) -> None:
        self.lanes = lanes
        self._clock = clock or WallClock()
        self._turn = asyncio.Lock()

    async def reserve(self, cost: Cost) -> Ticket:
        """Wait for room and take it. Raises RequestError for what no period has room for."""
        async with self._turn:
            while True:
                now = self._clock.now()
                lane = min(self.lanes, key=lambda lane: lane.wait_s(cost, now))
                self._fits(lane, cost)
                if (wait := lane.wait_s(cost, now)) <= 0:
                    break
                await self._clock.sleep(min(wait, NAP_S))
        taken = {
            name: lane.buckets[name].take(n, now)
            for name, n in amounts(cost).items()
            if lane.buckets[name].limit
        }
        return Ticket(lane, lane.next_key(), cost, now, taken)

    def settle(self, ticket: Ticket, actual: Cost) -> None:
        """What the request did cost."""
        now, actually = self._clock.now(), amounts(actual)
        reserved = amounts(ticket.cost)
        for name, spent in ticket.spent.items():
            ticket.lane.buckets[name].settle(spent, reserved[name], actually[name], now)

    def sync(self, ticket: Ticket, told: dict[str, Told]) -> None:
        """What the headers of its response said of each limit."""
        now = self._clock.now()
        for name, limit in told.items():
            ticket.lane.buckets[name].sync(limit, ticket.sent, now)

    def pause(self, ticket: Ticket, seconds: float) -> None:
        """This organisation was refused for so long; the others go on."""
        lane = ticket.lane
        lane.paused_until = max(lane.paused_until, self._clock.now() + seconds)
        for bucket in lane.buckets.values():
            bucket.narrow()

    def _fits(self, lane: Lane, cost: Cost) -> None:
        for name, amount in amounts(cost).items():
            if 0 < lane.buckets[name].limit < amount:
                raise RequestError(
                    f"One request of {amount:,} {name.replace('_', ' ')} is more than the limit of "
                    f"{lane.buckets[name].limit:,} per {lane.limits.period_s:.0f} s.",
                    hint="Shorten it, or ask for a higher limit.",
                )
