"""Limits as a provider enforces them, and a record of what clients did with them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta


@dataclass(slots=True)
class Meter:
    """One limit of one organisation: a token bucket, as providers have it, or strict, so much in
    any one period. Counts what was refused (over), what passed, and the most that passed in a
    period."""

    limit: int
    period_s: float
    strict: bool = False
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
        if self.at < 0:
            self.level, self.at = float(self.limit), now
        gained = (now - self.at) * self.limit / self.period_s
        self.level, self.at = min(float(self.limit), self.level + gained), now
        if self.strict:
            return self._full_s(amount, now)
        return max(0.0, (amount - self.level) * self.period_s / self.limit)

    def take(self, amount: int, now: float) -> None:
        self.level -= amount
        self.passed += amount
        self.recent.append([now, amount])
        self.held += amount
        self._pass(now)
        self.worst = max(self.worst, self.held)

    def give(self, amount: int, taken: float) -> None:
        """What a request that came at `taken` reserved and did not use."""
        self.level = min(float(self.limit), self.level + amount)
        self.passed -= amount
        for entry in reversed(self.recent):
            if entry[0] == taken:
                entry[1] -= amount
                self.held -= amount
                return

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

    def __init__(self, limits: dict[str, int], period_s: float, strict: bool = False) -> None:
        self._limits = {name: limit for name, limit in limits.items() if limit}
        self._period_s = period_s
        self._strict = strict
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

    def headers(self, organisation: str, pattern: str, stamps: bool) -> dict[str, str]:
        """As `x-ratelimit-{what}-{name}`; resets as durations or, stamps, as times of day."""
        today = datetime.now(UTC)
        out = {}
        for name in self._limits:
            meter = self._meter(organisation, name)
            missing = max(0.0, meter.limit - meter.level) * self._period_s / meter.limit
            for what, value in (
                ("limit", str(meter.limit)),
                ("remaining", str(max(0, int(meter.level)))),
                (
                    "reset",
                    (today + timedelta(seconds=missing)).isoformat()
                    if stamps
                    else f"{missing:.3f}s",
                ),
            ):
                out[pattern.format(what=what, name=name)] = value
        return out

    def _meter(self, organisation: str, name: str) -> Meter:
        key = (organisation, name)
        if key not in self.meters:
            self.meters[key] = Meter(self._limits[name], self._period_s, self._strict)
        return self.meters[key]
