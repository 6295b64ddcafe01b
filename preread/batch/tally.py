"""Counts of a run, kept while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from preread.batch.schema import Result
from preread.prices import Prices

NAMES = ("cached", "computed", "output", "written")
COUNTS = tuple(Result._fields.index(name) for name in NAMES)
RESPONSE = Result._fields.index("response")


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
    warmed: int = 0  # of the computed ones, those read before the first row, for all to find
    responses: int = 0  # requests that the response cache has answered
    unsure: int = 0  # tokens, at most, of requests that were sent and not answered
    unsure_money: float = 0.0
    prices: Prices | None = None
    money: float = 0.0
    whole: float = 0.0  # money that the same would have cost without reuse
    began: float = field(default_factory=time.monotonic)

    def add(self, results: Sequence[Result]) -> None:
        if not results:
            return
        columns = list(zip(*results, strict=True))
        cached, computed, output, written = (sum(columns[i]) for i in COUNTS)
        self.done += len(results)
        self.now += len(results)
        self.failed += columns[1].count("error")
        self.cached += cached
        self.computed += computed
        self.output += output
        self.written += written
        self.responses += sum(map(bool, columns[RESPONSE]))
        self.pay(computed, cached, output, written)

    def doubt(self, computed: int, output: int) -> None:
        """So much may have been billed for requests that were sent and not answered."""
        self.unsure += computed + output
        self.doubt_money(computed, output)

    def doubt_money(self, computed: int, output: int) -> None:
        """At the prices of the backend that runs now, as if everything had been written."""
        if (prices := self.prices) is not None:
            self.unsure_money += prices.most(computed, output)

    def spend(self, cached: int, computed: int, output: int, written: int) -> None:
        """So much was billed that no result counts."""
        self.cached += cached
        self.computed += computed
        self.output += output
        self.written += written
        self.pay(computed, cached, output, written)

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
    def reused(self) -> int:
        """Tokens of prompts that were computed for none: what was read for all rows counts as the
        first one's."""
        return max(self.cached - self.warmed, 0)

    @property
    def prompt(self) -> int:
        return self.reused + self.computed

    @property
    def cached_share(self) -> float:
        """Of the prompt tokens."""
        return self.reused / max(self.prompt, 1)

    @property
    def left_s(self) -> float | None:
        """At this session's rate; None before anything is known."""
        return (self.total - self.done) / self.per_s if self.now else None
