"""Passive counters: a component owns a `Metrics`, counts into it and never reads it back.

No client library and no global registry; whoever exposes them (server, `doctor`) takes a snapshot.
"""

from __future__ import annotations

import threading
from collections import Counter


class Metrics:
    """Thread-safe named counters. Names are dotted, units are in the name (`store.load_bytes`)."""

    __slots__ = ("_counts", "_lock")

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, amount: float = 1) -> None:
        with self._lock:
            self._counts[name] += amount  # type: ignore[assignment]  # float totals are fine

    def snapshot(self) -> dict[str, float]:
        with self._lock:
            return dict(sorted(self._counts.items()))
