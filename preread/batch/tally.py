"""Counts of a run, kept while it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from preread.batch.schema import Result
from preread.types import Prices


@dataclass(slots=True)
class Tally:
    """total: requests that run (twins apart); done: of those with a result, earlier sessions
    included; now: of those in this one. Tokens are of this and earlier sessions."""

    total: int
    done: int = 0
    failed: int = 0
    now: int = 0
    cached: int = 0
    computed: int = 0
    output: int = 0
    written: int = 0
    prices: Prices | None = None
    money: float = 0.0
    whole: float = 0.0  # money that the same would have cost without reuse
    began: float = field(default_factory=time.monotonic)

    def add(self, result: Result) -> None:
        self.done += 1
        self.now += 1
        self.failed += result.finish == "error"
        self.cached += result.cached
        self.computed += result.computed
        self.output += result.output
        self.written += result.written
        self.pay(result.computed, result.cached, result.output, result.written)

    def pay(self, computed: int, cached: int, output: int, written: int) -> None:
        """At the prices of the backend that runs now."""
        if self.prices is not None:
            self.money += self.prices.of(computed, cached, output, written)
            self.whole += self.prices.of(computed + cached, 0, output)

    @property
    def seconds(self) -> float:
        """Of this session."""
        return time.monotonic() - self.began

    @property
    def per_s(self) -> float:
        """Requests a second in this session."""
        return self.now / self.seconds if self.now else 0.0

    @property
    def cached_share(self) -> float:
        """Of the prompt tokens."""
        return self.cached / max(self.cached + self.computed, 1)

    @property
    def left_s(self) -> float | None:
        """At this session's rate; None before anything is known."""
        return (self.total - self.done) / self.per_s if self.now else None
