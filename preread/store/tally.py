"""Counting what a load delivers, tier by tier."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from preread.store.rates import Rates
from preread.store.reports import End, LoadReport, Miss
from preread.store.tiers.base import Tier
from preread.types import Served


@dataclass(slots=True)
class Row:
    """See reports.Served; time in seconds."""

    chunks: int = 0
    tokens: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    first: tuple[int, float] = (0, 0.0)  # bytes of its first chunk, seconds until it was there


class Tally:
    """One load of tokens from `start` on, which begins now. end: why it goes no further."""

    def __init__(self, start: int) -> None:
        self.end: End | None = None
        self.done = start
        self._began = self._mark = time.perf_counter()
        self._rows: dict[Tier, Row] = {}
        self._latest: Row | None = None

    def served(self, tier: Tier, nbytes: int) -> None:
        """A box was delivered; all the time since the one before was spent on it."""
        now = time.perf_counter()
        row = self._rows.setdefault(tier, Row())
        row.chunks += 1
        row.nbytes += nbytes
        row.seconds += now - self._mark
        self._mark = now
        if row.chunks == 1:
            row.first = nbytes, row.seconds
        self._latest = row

    def completed(self, tokens: int, upto: int | None = None) -> None:
        """With the box that was served last so many tokens are there; upto: all before it."""
        if self._latest is not None:
            self._latest.tokens += tokens
        self.done = self.done if upto is None else upto

    def reached(self, start: int, end: int) -> None:
        """Tokens [start, end), and all before them, are there."""
        self.completed(end - max(self.done, start), end)

    def wants(self, end: int) -> bool:
        """Whether a box that ends there lies before the prefix does."""
        return self.end is None or end <= self.end.token

    @property
    def elapsed_s(self) -> float:
        return self._mark - self._began

    def missed(self, why: Miss, token: int) -> None:
        """The prefix ends at this token, if it has not before."""
        if self.end is None:
            self.end = End.at(why, token)

    def cut(self, why: Miss, token: int) -> None:
        """The prefix ends at this token, or where it did before; too slow: where it is now."""
        token = min(token, self.done) if why is Miss.TOO_SLOW else token
        if self.end is None or token < self.end.token:
            self.end = End.at(why, token)

    def measure(self, rates: Rates, late: Tier | None) -> None:
        """What is learnt of the tiers; of the late one, that even one more byte took until now."""
        for tier, row in self._rows.items():
            if tier is late:
                continue
            nbytes, seconds = row.first
            rates.loaded(tier.name, nbytes, 1, seconds)
            if row.chunks > 1:
                rates.loaded(tier.name, row.nbytes, row.chunks, row.seconds)
        if late is not None:
            row = self._rows.get(late, Row())
            waited = time.perf_counter() - self._mark
            rates.loaded(late.name, row.nbytes + 1, row.chunks + 1, row.seconds + waited)

    def measure_beside(self, rates: Rates, left: Tier | None) -> None:
        """The same where tokens were computed meanwhile. left: the tier that was waited for when
        they met; it is to blame if it took longer than foreseen."""
        for tier, row in self._rows.items():
            if pace := rates.pace(tier.name):
                rates.loaded_beside(tier.name, pace.seconds(row.nbytes, row.chunks), row.seconds)
        if left is not None and (pace := rates.pace(left.name)):
            row = self._rows.get(left, Row())
            waited = time.perf_counter() - self._mark
            size = row.nbytes // row.chunks if row.chunks else 1
            if waited > pace.seconds(size, 1):
                foreseen_s = pace.seconds(row.nbytes + size, row.chunks + 1)
                rates.loaded_beside(left.name, foreseen_s, row.seconds + waited)

    def report(
        self, began: float, faults: Sequence[tuple[str, str]], tiers: Iterable[Tier]
    ) -> LoadReport:
        """began: of `time.perf_counter`; tiers: in the order in which they are to be named."""
        served = tuple(
            Served(tier.name, row.chunks, row.tokens, row.nbytes, row.seconds * 1e3)
            for tier in tiers
            if (row := self._rows.get(tier))
        )
        nbytes = sum(row.nbytes for row in served)
        ms = (time.perf_counter() - began) * 1e3
        tokens = sum(row.tokens for row in served)
        return LoadReport(self.done, nbytes, ms, tuple(faults), served, self.end, tokens)
