"""What is counted of each context: `context.NAME.rows`, `cached_tokens`, `computed_tokens`; of the
tiers `context.NAME.hit_tokens.TIER`, `hit_bytes`, `hit_ms`; and `context.NAME.miss.REASON`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from preread.metrics import Metrics
from preread.types import Brought

LATEST = 64  # loads that are remembered, as the rows that waited for one all speak of it


class Counting:
    """Of one context. Thread-safe."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name
        self._lock = threading.Lock()
        self._counted: deque[Brought] = deque(maxlen=LATEST)

    def asked(self, rows: int, cached: int, computed: int) -> None:
        """Rows that ended, and the tokens of their prompts."""
        counts = {"rows": rows, "cached_tokens": cached, "computed_tokens": computed}
        for kind, count in counts.items():
            self._metrics.add(f"context.{self._name}.{kind}", count)

    def brought(self, loads: Iterable[Brought]) -> None:
        """Each once, however many rows speak of it."""
        for load in loads:
            with self._lock:
                if any(load is one for one in self._counted):
                    continue
                self._counted.append(load)
            for tier, _, tokens, nbytes, ms in load.served:
                for kind, count in (("tokens", tokens), ("bytes", nbytes), ("ms", ms)):
                    self._metrics.add(f"context.{self._name}.hit_{kind}.{tier}", count)
            if load.miss:
                self._metrics.add(f"context.{self._name}.miss.{load.miss}")
