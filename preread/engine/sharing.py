"""Of the processes that want a prefix at once, one computes it; the others load what it keeps.

Waiting must never cost more than working: who has waited twice as long as computing would have
taken computes, and nobody waits for a medium that cannot be asked.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from preread.errors import PrereadError
from preread.metrics import Metrics
from preread.store.claims import Claims
from preread.store.store import Store

if TYPE_CHECKING:
    from preread.types import Int32Array

LOOK_S = 0.5  # between two looks at what others have kept
LASTS_S = 30.0  # a claim, unless it is renewed
WORTH_S = 0.5  # of computing: below that a claim costs more than it saves
PATIENCE = 2.0  # times what computing takes
LEAST_WAIT_S = 10.0  # where that is short, or not known

log = logging.getLogger("preread.engine")


class Sharing:
    """claims: None where nobody else is asked."""

    def __init__(self, store: Store | None, claims: Claims | None, metrics: Metrics) -> None:
        self._store, self._claims, self._metrics = store, claims, metrics

    def turn(self, tokens: Int32Array, ready: int) -> Turn | None:
        """A place in the line of those who want tokens [ready, all); None: compute at once."""
        if self._store is None or self._claims is None or ready == len(tokens):
            return None
        needs = self._store.foreseen(ready, len(tokens))
        if needs is not None and needs < WORTH_S:
            return None
        if not (keys := self._store.keys(tokens)):
            return None  # the epochs are not known now: nothing could be kept for others
        return Turn(
            self._claims, keys[-1], self._metrics, max(PATIENCE * (needs or 0), LEAST_WAIT_S)
        )


class Turn:
    """One process's wish to compute one prefix. `leave` it, whatever happens."""

    def __init__(self, claims: Claims, key: str, metrics: Metrics, patience_s: float) -> None:
        self._claims, self._key, self._metrics = claims, key, metrics
        self._until = time.monotonic() + patience_s
        self._left = threading.Event()
        self._renewing: threading.Thread | None = None

    def ours(self) -> bool:
        """Whether to compute now; else look again at what others have kept, in a while."""
        if not self._take():
            self._metrics.add("engine.waits_for_others")
            if time.monotonic() < self._until:
                return False
            self._metrics.add("engine.waits_given_up")
            return True
        renewing = threading.Thread(target=self._renew, name="preread-claim", daemon=True)
        try:
            renewing.start()
        except RuntimeError as exc:  # the process may have no more: it runs out
            log.warning("a claim is not renewed: %s", exc)
            return True
        self._renewing = renewing
        return True

    def leave(self) -> None:
        """Computed and kept, or given up. Idempotent."""
        self._left.set()
        if self._renewing is not None:
            self._renewing.join()
            self._renewing = None
            try:
                self._claims.drop(self._key)
            except PrereadError as exc:  # it runs out
                log.warning("a claim could not be given back: %s", exc)

    def _take(self) -> bool:
        try:
            return self._claims.take(self._key, LASTS_S)
        except PrereadError as exc:
            log.warning("nobody is asked who else computes this: %s", exc)
            return True

    def _renew(self) -> None:
        while not self._left.wait(LASTS_S / 3):
            self._take()
