"""Many requests, a network and a provider's limit, in virtual time: what passes and what is not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from preread.providers.bucket import Bucket, Told
from preread.providers.lanes import Cost, Lane, Limits
from preread.providers.limits import Limiter
from preread.testing.simulation.rates import Meter
from tests.providers.clock import LoopClock


@dataclass
class World:
    """rows, at_once: the work; limit, period_s, counts: see Meter; there_s, work_s, back_s: how
    long a request takes to arrive, to be answered, and its answer to come; input, most, output:
    tokens of a prompt, asked for, written; slack: of what is reserved; told: headers are sent;
    refills: what we know of how it counts; by_tokens: what is limited; first_s: more that the first
    takes."""

    rows: int = 2000
    at_once: int = 64
    limit: int = 500
    period_s: float = 10.0
    counts: str = "bucket"
    there_s: Callable[[random.Random], float] = lambda r: r.uniform(0.002, 0.012)
    work_s: Callable[[random.Random], float] = lambda r: 0.04
    back_s: Callable[[random.Random], float] = lambda r: 0.002
    input: int = 1
    most: int = 0
    output: int = 0
    slack: float = 1.0
    told: bool = True
    refills: bool = False
    by_tokens: bool = False
    seed: int = 0
    first_s: float = 0.1
    meter: Meter = field(init=False)
    lane: Lane = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.limit, self.period_s, self.counts)
        self._random = random.Random(self.seed)
        self._name = "tokens" if self.by_tokens else "requests"

    @property
    def bucket(self) -> Bucket:
        """Ours."""
        return self.lane.buckets[self._name]

    @property
    def ideal_s(self) -> float:
        """The least time that anyone can take until the last request is admitted."""
        each = self.input + self.output if self.by_tokens else 1
        over = self.rows * each / self.limit
        if self.counts == "bucket":
            return max(0.0, over - 1) * self.period_s
        return (max(1, -(-self.rows * each // self.limit)) - 1) * self.period_s

    async def ours(self) -> float:
        """Seconds until all is answered, through our limiter."""
        given = {self._name: self.limit, "period_s": self.period_s, "refills": self.refills}
        self.lane = Lane("", ("",), Limits(**given))
        limiter = Limiter([self.lane], LoopClock())
        places = asyncio.Semaphore(self.at_once)
        reserved = Cost(int(self.input * self.slack), self.most)

        async def one(more_s: float = 0.0) -> None:
            async with places:
                while True:
                    ticket = await limiter.reserve(reserved)
                    passed, told = await self.ask(more_s)
                    if told is not None:
                        limiter.sync(ticket, {self._name: told})
                    if passed:
                        limiter.settle(ticket, Cost(self.input, self.output))
                        return
                    limiter.settle(ticket, Cost(0, 0))
                    limiter.pause(ticket, 0.05)

        loop = asyncio.get_running_loop()
        began = loop.time()
        await one(self.first_s)
        await asyncio.gather(*(one() for _ in range(self.rows - 1)))
        return loop.time() - began

    async def ask(self, more_s: float = 0.0) -> tuple[bool, Told | None]:
        """One request there and back."""
        amount = self.input + self.most if self.by_tokens else 1
        loop, rng = asyncio.get_running_loop(), self._random
        await asyncio.sleep(self.there_s(rng))
        came = loop.time()
        passed = self.meter.room(amount, came) <= 0
        if passed:
            self.meter.take(amount, came)
        self.meter.over += not passed
        told = Told(self.limit, *self.meter.left(came)) if self.told else None
        if passed:
            await asyncio.sleep(self.work_s(rng) + more_s)
            if self.by_tokens:
                self.meter.give(self.most - self.output, came)
        await asyncio.sleep(self.back_s(rng))
        return passed, told
