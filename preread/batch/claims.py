"""What the plan for 170,000 candidates expected of its tests, and the same arithmetic done right.

Its prompt: 2,000 shared and 50 own tokens. Its assumptions: a model loads in 10 s, a request takes
100 ms besides 2 ms to tokenize its 2,050 tokens. Reading the prompt, which is what reuse saves, is
in none of them: so its seconds, done right, hardly differ between the modes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from preread.batch.trial import Mode

SHARED, OWN = 2000, 50  # tokens
LOAD_S, TOKENIZE_S, INFER_S = 10.0, 0.002, 0.1
PRICE = 1.0  # of a million tokens
TABLE = 170_000  # requests of its table


@dataclass(frozen=True, slots=True)
class Expected:
    """None where the plan says nothing."""

    computed: int | None = None
    loads: float | None = None
    hit_rate: float | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Expected.__slots__}


def claimed(mode: Mode, requests: int) -> Expected:
    """As it is written there, of its Tests 1 to 4 and its table."""
    said = {
        (Mode.baseline, 100): Expected(205_000, 6, None, 30.0),
        (Mode.keep_alive, 100): Expected(205_000, 1, None, 20.0),
        (Mode.full, 100): Expected(7_000, 1, 0.99, 12.0),
        (Mode.full, 10_000): Expected(502_000, None, None, 20 * 60.0),
        (Mode.baseline, 10_000): Expected(20_500_000),
        (Mode.baseline, TABLE): Expected(348_500_000, 34_000, None, 429 * 3600.0),
        (Mode.full, TABLE): Expected(8_502_000, 1, None, 10 * 3600.0),
    }
    return said.get((mode, requests), Expected())


def corrected(mode: Mode, requests: int) -> Expected:
    """By its own assumptions: a server that keeps a model for five minutes loads it once in a run
    without a gap; the share of tokens that hit is not the share of requests."""
    prompt = requests * (SHARED + OWN)
    computed = SHARED + requests * OWN if mode is Mode.full else prompt
    tokenize = TOKENIZE_S * computed / (SHARED + OWN)
    return Expected(
        computed, 1, (prompt - computed) / prompt, LOAD_S + tokenize + requests * INFER_S
    )
