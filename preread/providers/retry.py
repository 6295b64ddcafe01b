"""What may be tried again, and when."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

OVERLOADED = frozenset({429, 503, 529})
PASSING = OVERLOADED | {408, 500, 502, 504}
UNANSWERED = frozenset({502, 504, 524})  # a gateway's: what stands behind it may have answered
NEVER = frozenset({"insufficient_quota", "billing_hard_limit_reached"})  # 429s that time won't mend


@dataclass(slots=True)
class Retry:
    """attempts: in all; delays in seconds. The delay is drawn from [0, base x 2^n] ("full jitter",
    so that requests refused together do not come back together), at least what the server asks."""

    attempts: int = 6
    base_s: float = 0.5
    most_s: float = 30.0
    random: random.Random = field(default_factory=random.Random)

    def delay_s(self, attempt: int, asked_s: float | None) -> float:
        """Before attempt number `attempt` + 1 (the first is 1)."""
        drawn = self.random.uniform(0.0, min(self.most_s, self.base_s * 2.0 ** (attempt - 1)))
        return drawn + (asked_s or 0.0)

    @staticmethod
    def may(status: int, code: str) -> bool:
        """Whether the same request may succeed later."""
        return status in PASSING and code not in NEVER
