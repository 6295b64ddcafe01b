"""Limits as a provider enforces them, and a record of what clients did with them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

COUNTS = ("bucket", "sliding", "fixed")


@dataclass(slots=True)
class Meter:
    """One limit of one organisation. counts: "bucket", which refills evenly (a rested one lets two
    periods' worth pass in the first), "sliding", so much in any one period, or "fixed", so much
    between two full periods of the clock. Counts what was refused (over), what passed, and the most
    that passed in any one period."""

    limit: int
    period_s: float
    counts: str = "bucket"
    level: float = 0.0
    at: float = -1.0
    over: int = 0
    passed: int = 0
    worst: int = 0
    recent: deque[list[float]] = field(default_factory=deque)  # [when, how much]
    held: int = 0  # of `recent`, less what was given back

    def room(self, amount: int, now: float) -> float:
        """Seconds until so much may pass; 0: now."""
        if not self.limit:
            return 0.0
        self._refill(now)
        if self.counts == "sliding":
            return self._full_s(amount, now)
        if amount <= self.level:
            return 0.0
        if self.counts == "fixed":
            return self._end_s(now)
        return (amount - self.level) * self.period_s / self.limit

    def take(self, amount: int, now: float) -> None:
        self.level -= amount
        self.passed += amount
        self.recent.append([now, amount])
        self.held += amount
        self._pass(now)
        self.worst = max(self.worst, self.held)

    def give(self, amount: int, taken: float) -> None:
        """What a request that came at `taken` reserved and did not use."""
        if self.counts != "fixed" or self._period(taken) == self._period(self.at):
            self.level = min(float(self.limit), self.level + amount)
        self.passed -= amount
        for entry in reversed(self.recent):
            if entry[0] == taken:
                entry[1] -= amount
                self.held -= amount
                return

    def left(self, now: float) -> tuple[int, float]:
        """What its headers say: how much remains, and in how many seconds all of it."""
        self._refill(now)
        if self.counts == "sliding":
            self._pass(now)
            whole_s = self.recent[-1][0] + self.period_s - now if self.recent else 0.0
            return max(0, self.limit - self.held), whole_s
        missing = self.limit - self.level
        whole_s = missing * self.period_s / self.limit
        if self.counts == "fixed":
            whole_s = self._end_s(now) if missing > 0 else 0.0
        return max(0, int(self.level)), whole_s

    def _refill(self, now: float) -> None:
        if self.at < 0:
            self.level, self.at = float(self.limit), now
        gained = (now - self.at) * self.limit / self.period_s
        if self.counts == "fixed":
            gained = self.limit if self._period(now) > self._period(self.at) else 0.0
        self.level, self.at = min(float(self.limit), self.level + gained), now

    def _period(self, at: float) -> int:
        return int(at // self.period_s)

    def _end_s(self, now: float) -> float:
        """Seconds until the next period of the clock."""
        return max(1e-6, (self._period(now) + 1) * self.period_s - now)

    def _pass(self, now: float) -> None:
        while self.recent and self.recent[0][0] <= now - self.period_s:
            self.held -= int(self.recent.popleft()[1])

    def _full_s(self, amount: int, now: float) -> float:
        """Seconds until the last period has room for so much."""
        self._pass(now)
        excess = self.held + amount - self.limit
        for at, n in self.recent:
            if excess <= 0:
                break
            excess -= int(n)
            if excess <= 0:
                return max(1e-6, at + self.period_s - now)
        return 0.0


class Rates:
    """The meters of all organisations: requests, tokens, input-tokens, output-tokens."""

    def __init__(self, limits: dict[str, int], period_s: float, counts: str = "bucket") -> None:
        self._limits = {name: limit for name, limit in limits.items() if limit}
        self._period_s = period_s
        self._counts = counts
        self.meters: dict[tuple[str, str], Meter] = {}

    def admit(self, organisation: str, amounts: dict[str, int], now: float) -> float:
        """0 if a request passes, else the seconds until it might."""
        meters = {name: self._meter(organisation, name) for name in self._limits}
        wait = {name: m.room(amounts[name], now) for name, m in meters.items()}
        for name, seconds in wait.items():
            meters[name].over += seconds > 0
        if any(wait.values()):
            return max(wait.values())
        for name, meter in meters.items():
            meter.take(amounts[name], now)
        return 0.0

    def give(self, organisation: str, name: str, amount: int, taken: float) -> None:
        if name in self._limits and amount:
            self._meter(organisation, name).give(amount, taken)

    def headers(self, organisation: str, pattern: str, stamps: bool, now: float) -> dict[str, str]:
        """As `x-ratelimit-{what}-{name}`; resets as durations or, stamps, as times of day."""
        today = datetime.now(UTC)
        out = {}
        for name in self._limits:
            meter = self._meter(organisation, name)
            remaining, whole_s = meter.left(now)
            for what, value in (
                ("limit", str(meter.limit)),
                ("remaining", str(remaining)),
                (
                    "reset",
                    (today + timedelta(seconds=whole_s)).isoformat()
                    if stamps
                    else f"{whole_s:.3f}s",
                ),
            ):
                out[pattern.format(what=what, name=name)] = value
        return out

    def _meter(self, organisation: str, name: str) -> Meter:
        key = (organisation, name)
        if key not in self.meters:
            self.meters[key] = Meter(self._limits[name], self._period_s, self._counts)
        return self.meters[key]


def organisation_of(key: str) -> str:
    """`sk-NAME-1` belongs to NAME."""
    parts = key.split("-")
    return parts[1] if len(parts) > 2 else ""
