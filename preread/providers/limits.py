"""Rate limits as providers state them: so many requests and tokens per minute, for all keys of one
organisation together. A request reserves what it may cost before it is sent and gives back what it
did not use; how a limit is counted is preread.providers.bucket's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple, Protocol

from preread.errors import RequestError
from preread.providers.bucket import Bucket, Spent, Told

NAP_S = 0.25  # longest sleep before looking again whether something was given back


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
    period's amount that may be sent at once; refills: they are known to refill evenly."""

    requests: int = 0
    tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    period_s: float = 60.0
    cached: bool = True
    burst: float = 1.0
    refills: bool = False


@dataclass(slots=True, eq=False)
class Lane:
    """One organisation at one provider and model: its limits, and the keys that share them.
    fastest_s: the quickest answer so far, from which others tell how late they were."""

    name: str
    keys: Sequence[str] = field(repr=False)
    limits: Limits
    paused_until: float = 0.0
    fastest_s: float = inf
    key_turn: int = 0
    buckets: dict[str, Bucket] = field(init=False)
    waiting: dict[str, int] = field(init=False, repr=False)
    turn: asyncio.Lock = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given = self.limits
        self.buckets = {
            name: Bucket(getattr(given, name), given.period_s, given.burst, given.refills)
            for name in amounts(Cost(0, 0))
        }
        self.waiting = dict.fromkeys(self.buckets, 0)
        self.turn = asyncio.Lock()

    def wait_s(self, cost: Cost, now: float, behind: bool = False) -> float:
        """Seconds until a request may go; behind: after those that wait here already."""
        wait = self.paused_until - now
        for name, n in amounts(cost).items():
            if self.buckets[name].limit:
                more = self.waiting[name] if behind else 0
                wait = max(wait, self.buckets[name].wait_s(n + more, now))
        return wait

    def waits(self, cost: Cost, times: int) -> None:
        """One more that waits here (1), or one less (-1)."""
        for name, n in amounts(cost).items():
            self.waiting[name] += times * n

    def next_key(self) -> str:
        self.key_turn += 1
        return self.keys[self.key_turn % len(self.keys)]


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

    async def reserve(self, cost: Cost) -> Ticket:
        """Wait for room and take it. Raises RequestError for what no period has room for."""
        while True:
            now = self._clock.now()
            lane = self.lanes[0]
            if len(self.lanes) > 1:
                lane = min(self.lanes, key=lambda lane: lane.wait_s(cost, now, behind=True))
            if (ticket := await self._through(lane, cost)) is not None:
                return ticket

    async def _through(self, lane: Lane, cost: Cost) -> Ticket | None:
        """Wait for a lane; None if another is free sooner."""
        lane.waits(cost, 1)
        try:
            async with lane.turn:
                while True:
                    now = self._clock.now()
                    _fits(lane, cost)
                    if (wait := lane.wait_s(cost, now)) <= 0:
                        return self._take(lane, cost, now)
                    others = (o for o in self.lanes if o is not lane)
                    if any(other.wait_s(cost, now, behind=True) < wait for other in others):
                        return None
                    await self._clock.sleep(min(wait, NAP_S))
        finally:
            lane.waits(cost, -1)

    @staticmethod
    def _take(lane: Lane, cost: Cost, now: float) -> Ticket:
        taken = {
            name: lane.buckets[name].take(n, now)
            for name, n in amounts(cost).items()
            if lane.buckets[name].limit
        }
        return Ticket(lane, lane.next_key(), cost, now, taken)

    def settle(self, ticket: Ticket, actual: Cost) -> None:
        """It was answered or refused: what it did cost."""
        now, actually, lane = self._clock.now(), amounts(actual), ticket.lane
        took_s = now - ticket.sent
        if actual.input or actual.output:
            lane.fastest_s = min(lane.fastest_s, took_s)
        reserved, late_s = amounts(ticket.cost), took_s - lane.fastest_s
        for name, spent in ticket.spent.items():
            bucket = lane.buckets[name]
            bucket.settle(spent, reserved[name], actually[name], now, max(-1.0, late_s))

    def sync(self, ticket: Ticket, told: dict[str, Told]) -> None:
        """What the headers of its response said of each limit."""
        now = self._clock.now()
        for name, limit in told.items():
            ticket.lane.buckets[name].sync(limit, ticket.spent.get(name), now)

    def pause(self, ticket: Ticket, seconds: float) -> None:
        """This organisation was refused for so long; the others go on."""
        lane, now = ticket.lane, self._clock.now()
        lane.paused_until = max(lane.paused_until, now + seconds)
        for bucket in lane.buckets.values():
            bucket.narrow(ticket.sent, now)


def _fits(lane: Lane, cost: Cost) -> None:
    for name, amount in amounts(cost).items():
        if 0 < lane.buckets[name].limit < amount:
            raise RequestError(
                f"One request of {amount:,} {name.replace('_', ' ')} is more than the limit of "
                f"{lane.buckets[name].limit:,} per {lane.limits.period_s:.0f} s.",
                hint="Shorten it, or ask for a higher limit.",
            )
