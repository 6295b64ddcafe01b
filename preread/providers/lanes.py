"""Organisations as lanes to a provider: each with its limits, its keys and its queue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from preread.providers.bucket import Bucket


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
    """One organisation at one provider and model: its limits, and the keys that share them."""

    name: str
    keys: Sequence[str] = field(repr=False)
    limits: Limits
    paused_until: float = 0.0
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

    def free(self, now: float) -> bool:
        """Nothing is known to hold a request up: neither a limit, nor a pause, nor who came
        before."""
        if self.paused_until > now or self.turn.locked():
            return False
        return not any(bucket.limit for bucket in self.buckets.values())

    def wait_s(self, cost: Cost, now: float, behind: bool = False) -> float:
        """Seconds until a request may go; behind: after those that wait here already."""
        wait = self.paused_until - now
        for name, n in amounts(cost).items():
            if self.buckets[name].limit:
                more = self.waiting[name] if behind else 0
                wait = max(wait, self.buckets[name].wait_s(n + more, now))
        return wait

    def fits(self, cost: Cost) -> bool:
        """Whether a whole period has room for a request."""
        return all(not 0 < self.buckets[name].limit < n for name, n in amounts(cost).items())

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
