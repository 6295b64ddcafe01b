"""Misfortune by seed: the same requests meet the same faults, in whatever order they come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b

KINDS = ("busy", "error", "hang", "half", "reset")


@dataclass(frozen=True, slots=True)
class Odds:
    """Probability of each fault per attempt. busy: 429; error: 500; hang: no answer; half: a body
    cut short; reset: the connection is reset."""

    busy: float = 0.0
    error: float = 0.0
    hang: float = 0.0
    half: float = 0.0
    reset: float = 0.0
    seed: int = 0


class Faults:
    """Draws, by what is asked and how often it was."""

    def __init__(self, odds: Odds) -> None:
        self._odds = odds
        self._attempts: Counter[bytes] = Counter()
        self.met: Counter[str] = Counter()

    def draw(self, body: bytes) -> str:
        """A fault's name, "" for none."""
        if not any(getattr(self._odds, kind) for kind in KINDS):
            return ""
        asked = blake2b(body, digest_size=16).digest()
        self._attempts[asked] += 1
        drawn = f"{self._odds.seed} {self._attempts[asked]}".encode() + asked
        number = int.from_bytes(blake2b(drawn, digest_size=7).digest()) / 2**56
        for kind in KINDS:
            number -= getattr(self._odds, kind)
            if number < 0:
                self.met[kind] += 1
                return kind
        return ""
