"""Hits of a shared namespace that do not show: what a tier gives is handed over when computing it
would have been done, and is told as computed. Whoever asks cannot feel what others have stored.

A prefix that has to be loaded or computed is ready at one moment, `due`, which follows from its
length and from what computing takes here, whichever of the two it was. That costs the latency which
a hit saves, and a quarter more; what a hit saves of the device is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from preread.engine.caller import Caller
from preread.engine.reading import Reading

if TYPE_CHECKING:
    from preread.store.store import Store

MARGIN = 1.25  # times what computing is foreseen to take: steps that others' rows hold up
LEAST_S = 0.05  # and for what does not grow with it: looking up, storing


class Hiding:
    """Of one store. clock: in seconds."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.perf_counter) -> None:
        self._store = store
        self.clock = clock

    def due(self, start: int, end: int) -> float | None:
        """When tokens [start, end), wanted now, are handed over. None: what computing takes is not
        known here, so nothing may be loaded, and computing shows it."""
        if (needs := self._store.foreseen(start, end)) is None:
            return None
        return self.clock() + (MARGIN * needs + LEAST_S if needs else 0.0)

    def wait(self, due: float | None, caller: Caller, reading: Reading) -> None:
        """Until then. Raises as Caller.wait does."""
        if due is not None and (left := due - self.clock()) > 0:
            caller.pause(left, reading)
