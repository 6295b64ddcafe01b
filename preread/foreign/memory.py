"""Prefixes whose KV is in memory: found by their tokens, forgotten by last use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preread.foreign.cache import KV

if TYPE_CHECKING:
    from preread.types import Int32Array

LEAST = 16  # tokens; a shorter find is not worth its copy


@dataclass(slots=True, eq=False)
class _Kept:
    tokens: Int32Array
    regime: int
    kv: KV
    lease_s: float
    used: float

    def common(self, tokens: Int32Array) -> int:
        """Length of the common beginning."""
        n = min(len(self.tokens), len(tokens))
        differs = self.tokens[:n] != tokens[:n]
        return int(differs.argmax()) if differs.any() else n


class Memory:
    """Whole prefixes, each a copy of its own: two that begin alike lie twice. Thread-safe."""

    def __init__(
        self, budget: int, token_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """budget: bytes of all together; token_bytes: of one token."""
        self.budget = budget
        self._token_bytes = token_bytes
        self._clock = clock
        self._kept: list[_Kept] = []
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        with self._lock:
            return self._nbytes()

    def fits(self, tokens: int) -> bool:
        """Whether a prefix of so many tokens can ever be kept."""
        return tokens * self._token_bytes <= self.budget

    def longest(self, tokens: Int32Array, regime: int) -> KV | None:
        """The KV of as many leading tokens as are known; None for less than is worth it. Counts as
        a use."""
        with self._lock:
            near = [(kept.common(tokens), kept) for kept in self._kept if kept.regime == regime]
            found, best = max(near, key=lambda pair: pair[0], default=(0, None))
            if best is None or found < min(LEAST, len(tokens)) or not found:
                return None
            best.used = self._clock()
            return best.kv if found == best.kv.tokens else best.kv.cut(found)

    def put(self, tokens: Int32Array, regime: int, kv: KV, lease_s: float = 0.0) -> bool:
        """Keep a prefix, and for `lease_s` after each use where the budget allows; what it begins
        with need not be kept any more. False: it is larger than the budget."""
        if not self.fits(len(tokens)):
            return False
        with self._lock:
            now = self._clock()
            near = [(k, k.common(tokens)) for k in self._kept if k.regime == regime]
            for kept, common in near:
                if common == len(tokens) < len(kept.tokens):  # it is the beginning of another
                    kept.used, kept.lease_s = now, max(kept.lease_s, lease_s)
                    return True
            covered = [kept for kept, common in near if common == len(kept.tokens)]
            lease_s = max((lease_s, *(k.lease_s for k in covered)))
            self._kept = [k for k in self._kept if k not in covered]
            self._kept.append(_Kept(tokens, regime, kv, lease_s, now))
            self._evict(now)
            return True

    def forget(self, tokens: Int32Array) -> None:
        """Drop what begins with these tokens, leased or not; rows that use it keep it until they
        end."""
        with self._lock:
            self._kept = [k for k in self._kept if k.common(tokens) < len(tokens)]

    def clear(self) -> None:
        """Forget everything that is not leased: a pass ran out of memory."""
        with self._lock:
            now = self._clock()
            self._kept = [k for k in self._kept if k.used + k.lease_s > now]

    def _nbytes(self) -> int:
        return sum(len(k.tokens) for k in self._kept) * self._token_bytes

    def _evict(self, now: float) -> None:
        """Down to the budget: unleased before leased, oldest use first, never the newest."""
        order = sorted(self._kept[:-1], key=lambda k: (k.used + k.lease_s > now, k.used))
        for kept in order:
            if self._nbytes() <= self.budget:
                return
            self._kept.remove(kept)
