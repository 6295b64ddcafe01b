"""A circuit breaker: whoever failed is left alone for a while, so that a dead server costs one
deadline and not one per request (Nygard, "Release It!", 2007)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from enum import StrEnum

COOL_S = 1.0  # the first cool-down
LONGEST_COOL_S = 30.0
JITTER = 0.25  # of a cool-down, either way: many clients do not come back at once


class Circuit(StrEnum):
    CLOSED = "closed"  # asked as usual
    OPEN = "open"  # not asked until the cool-down is over
    HALF_OPEN = "half-open"  # the cool-down is over: one may try, the others wait for the outcome


class Breaker:
    """closed --failure--> open --cool-down--> half-open --success--> closed, or --failure--> open
    again for twice as long. Thread-safe. cause: of the last failure, for messages."""

    def __init__(
        self,
        *,
        cool_s: float = COOL_S,
        longest_s: float = LONGEST_COOL_S,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.cause = ""
        self._first_s = cool_s
        self._longest_s = longest_s
        self._clock = clock
        self._draw = draw
        self._lock = threading.Lock()
        self._failures = 0  # in a row
        self._until = 0.0  # open until then
        self._tried = 0.0  # when the one who may try was let through, while half-open

    @property
    def circuit(self) -> Circuit:
        if not self._failures:
            return Circuit.CLOSED
        return Circuit.OPEN if self._clock() < self._until else Circuit.HALF_OPEN

    def left(self) -> float:
        """Seconds of the cool-down that are left."""
        return max(self._until - self._clock(), 0.0)

    def closed(self) -> bool:
        """Whether to ask now, without taking the one try of a half-open circuit."""
        return self.circuit is not Circuit.OPEN

    def admit(self) -> bool:
        """Whether to ask now; who was told so reports success or failure. While half-open one is
        admitted, and another when that one has not come back within a cool-down."""
        with self._lock:
            circuit = self.circuit
            if circuit is Circuit.HALF_OPEN:
                now = self._clock()
                if self._tried and now - self._tried < self._first_s:
                    return False
                self._tried = now
            return circuit is not Circuit.OPEN

    def succeeded(self) -> None:
        with self._lock:
            self._failures = 0
            self._tried = 0.0

    def failed(self, cause: str) -> bool:
        """True if this opened a closed circuit."""
        with self._lock:
            circuit, self.cause = self.circuit, cause
            if circuit is not Circuit.OPEN:  # else: asked before it opened, nothing new
                cool_s = min(self._first_s * 2**self._failures, self._longest_s)
                self._until = self._clock() + cool_s * (1 + JITTER * (2 * self._draw() - 1))
                self._failures = min(self._failures + 1, 16)
                self._tried = 0.0
            return circuit is Circuit.CLOSED
