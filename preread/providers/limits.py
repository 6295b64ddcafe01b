"""Rate limits as providers state them: so many requests and tokens per minute, for all keys of one
organisation together. A request reserves what it may cost before it is sent and gives back what it
did not use; how a limit is counted is preread.providers.bucket's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from preread.errors import RequestError
from preread.providers.bucket import Spent, Told
from preread.providers.homes import Homes, Place
from preread.providers.lanes import Cost, Lane, amounts

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


class Want(NamedTuple):
    """What a request asks of the limits. group: of requests with the same beginning, "" for none;
    cold: the cost where that has not been read, None: no other."""

    cost: Cost
    group: str = ""
    cold: Cost | None = None

    @property
    def most(self) -> Cost:
        """What it may cost wherever it goes."""
        return self.cold or self.cost


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to send one request. key: never shown; spent: of the limits that are known."""

    place: Place
    key: str = field(repr=False)
    cost: Cost
    group: str
    sent: float
    spent: dict[str, Spent] = field(repr=False)

    @property
    def lane(self) -> Lane:
        return self.place.lane


class Limiter:
    """Lets requests pass in the order they came, each through a lane of its group."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        clock: Clock | None = None,
        *,
        firsts: int = 1,
        ttl_s: float = 0.0,
    ) -> None:
        """firsts, ttl_s: see Homes."""
        self.lanes = lanes
        self._clock = clock or WallClock()
        self._homes = Homes(lanes, firsts, ttl_s)

    async def reserve(self, cost: Cost, group: str = "", cold: Cost | None = None) -> Ticket:
        """Wait for room and take it; see Want. Raises RequestError for what no period has room
        for."""
        place = self._homes.place(group, cost, self._clock.now())
        while True:
            asked, ticket = (cold or cost) if place.new else cost, None
            try:
                ticket = await self._through(place, asked, group)
            finally:
                if not isinstance(ticket, Ticket):
                    self._left(group, place, answered=False)
            if isinstance(ticket, Ticket):
                return ticket
            place = ticket

    async def _through(self, place: Place, cost: Cost, group: str) -> Ticket | Place:
        """Wait for a lane; another place, if there is a better one by now."""
        lane = place.lane
        if lane.free(now := self._clock.now()):
            return Ticket(place, lane.next_key(), cost, group, now, {})
        lane.waits(cost, 1)
        try:
            async with lane.turn:
                while True:
                    now = self._clock.now()
                    if not lane.fits(cost):
                        if not any(other.fits(cost) for other in self.lanes):
                            raise _too_large(lane, cost)
                        return self._homes.place(group, cost, now, lane)
                    if (wait := lane.wait_s(cost, now)) <= 0:
                        return self._take(place, cost, group, now)
                    if not place.new and len(self.lanes) > 1:
                        better = self._homes.place(group, cost, now, lane)
                        if better.lane is not lane:
                            return better
                    await self._clock.sleep(min(wait, NAP_S))
        finally:
            lane.waits(cost, -1)

    @staticmethod
    def _take(place: Place, cost: Cost, group: str, now: float) -> Ticket:
        lane = place.lane
        taken = {
            name: lane.buckets[name].take(n, now)
            for name, n in amounts(cost).items()
            if lane.buckets[name].limit
        }
        return Ticket(place, lane.next_key(), cost, group, now, taken)

    def _left(self, group: str, place: Place, answered: bool) -> None:
        if len(self.lanes) > 1 and group:
            self._homes.ended(group, place, answered, self._clock.now())

    def settle(self, ticket: Ticket, actual: Cost) -> None:
        """It was answered or refused: what it did cost."""
        if actual.input or actual.output:
            self._left(ticket.group, ticket.place, answered=True)
        if not ticket.spent:
            return
        now, actually, lane = self._clock.now(), amounts(actual), ticket.lane
        reserved, took_s = amounts(ticket.cost), now - ticket.sent
        for name, spent in ticket.spent.items():
            bucket = lane.buckets[name]
            bucket.settle(spent, reserved[name], actually[name], now, took_s)

    def done(self, ticket: Ticket) -> None:
        """It is over, whatever came of it; after `settle`, where that is called."""
        self._left(ticket.group, ticket.place, answered=False)

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


def _too_large(lane: Lane, cost: Cost) -> RequestError:
    all_of = amounts(cost).items()
    name, amount = next((k, n) for k, n in all_of if 0 < lane.buckets[k].limit < n)
    return RequestError(
        f"One request of {amount:,} {name.replace('_', ' ')} is more than the limit of "
        f"{lane.buckets[name].limit:,} per {lane.limits.period_s:.0f} s.",
        hint="Shorten it, or ask for a higher limit.",
    )
