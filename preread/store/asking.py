"""Asking tiers, whatever they do: nothing here raises, a tier that fails is logged and counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from math import inf

from preread.errors import TierError
from preread.metrics import Metrics
from preread.store.chunk import Fault
from preread.store.reports import Miss
from preread.store.tiers.base import ChunkKey, Drops, Gone, Recalls, Tier, Weighs
from preread.store.upkeep import Upkeep

AGAIN_S = 300.0  # what is no trouble is said of a tier this often
KNOWN = 1 << 16  # keys remembered as held: 64 k chunks, about 8 MB


class Asker:
    """The tiers of a store, nearest first, and what this process knows of them. Thread-safe."""

    def __init__(
        self, tiers: Sequence[Tier], upkeep: Upkeep, metrics: Metrics, log: logging.Logger
    ) -> None:
        self.tiers = tuple(tiers)
        self._upkeep = upkeep
        self._metrics = metrics
        self._log = log
        # Bad chunks that could not be set aside: neither found nor read until written anew.
        self._suspect: set[tuple[str, ChunkKey]] = set()
        self._said: dict[Tier, float] = {}  # when it was said, of `time.monotonic`
        self._seen: dict[ChunkKey, None] = {}  # held when last looked at, the latest last
        self._lock = threading.Lock()  # of what was seen

    def held(
        self, tier: Tier, keys: Sequence[ChunkKey], *, touch: bool = False
    ) -> set[ChunkKey] | None:
        """Which of the keys the tier holds; None when it cannot be asked."""
        try:
            found = tier.find(keys, touch=touch)
        except TierError as exc:
            self.failed(tier, exc)
            return None
        held = set(compress(keys, found))
        if self._suspect:
            held = {key for key in held if not self.suspects(tier, key)}
        return held

    def places(
        self, keys: Sequence[ChunkKey], tiers: Iterable[Tier]
    ) -> tuple[dict[ChunkKey, Tier], list[Tier]]:
        """(key -> nearest tier that says it holds it, tiers that could not be asked). Each tier is
        asked once, for what no nearer one holds."""
        places: dict[ChunkKey, Tier] = {}
        dead: list[Tier] = []
        for tier in tiers:
            rest = [key for key in keys if key not in places] if places else keys
            if not rest:
                break
            if (held := self.held(tier, rest)) is None:
                dead.append(tier)
            else:
                places |= dict.fromkeys(held, tier)
        self._see(places)
        return places, dead

    def write(
        self,
        tier: Tier,
        key: ChunkKey,
        parts: Sequence[bytes | memoryview],
        *,
        offered: bool = False,
    ) -> bool:
        """Whether the tier took it. offered: nothing is said where it does not want it."""
        try:
            return self._taken(tier, key, parts, offered)
        except TierError as exc:
            self.failed(tier, exc)
            return False

    def take(self, tier: Tier, key: ChunkKey, value: bytes | memoryview) -> bool:
        """The same for who waits to write more: raises TierError where the tier has failed, which
        is counted."""
        try:
            return self._taken(tier, key, [value], False)
        except TierError as exc:
            self.failed(tier, exc)
            raise

    def _taken(
        self, tier: Tier, key: ChunkKey, parts: Sequence[bytes | memoryview], offered: bool
    ) -> bool:
        if tier.write(key, parts):
            self._suspect.discard((tier.name, key))
            self._see({key: tier})
            return True
        if not offered:
            why = "no room within its budget for what is worth no more than the rest"
            self.refused(tier, why, every_s=AGAIN_S)  # a full tier does so all day
        return False

    def used(self, tier: Tier, saved: Mapping[ChunkKey, float]) -> None:
        """See base.Weighs."""
        try:
            if isinstance(tier, Weighs):
                tier.used(saved)
        except TierError as exc:
            self.failed(tier, exc)

    def fallen(self, tier: Tier) -> list[tuple[ChunkKey, memoryview]]:
        """See base.Drops."""
        return tier.fallen() if isinstance(tier, Drops) else []

    def suspects(self, tier: Tier, key: ChunkKey) -> bool:
        return (tier.name, key) in self._suspect

    def reject(self, tier: Tier, key: ChunkKey, reason: Fault, detail: str = "") -> None:
        """A bad chunk: log, count and set aside."""
        with self._lock:
            self._seen.pop(key, None)
        if not self._upkeep.reject(tier, key, reason, detail):
            self._suspect.add((tier.name, key))

    def failed(self, tier: Tier, exc: TierError) -> None:
        self._upkeep.tier_failed(tier, exc)

    def refused(self, tier: Tier, why: str, *, every_s: float = 0.0) -> None:
        """Count it, and log it unless that was done less than every_s ago."""
        self._metrics.add(f"store.refused.{tier.name}")
        now = time.monotonic()
        if every_s and now - self._said.get(tier, -inf) < every_s:
            return
        self._said |= {tier: now} if every_s else {}
        self._log.warning("tier %s does not keep everything: %s.", tier.name, why)

    def lost(self, keys: Sequence[ChunkKey]) -> Miss | None:
        """Why chunks that no tier holds now are held no more, as far as that is known: by the tier
        that lost them last, the farthest."""
        for tier in reversed(self.tiers):
            if any(self.suspects(tier, key) for key in keys):
                return Miss.CORRUPT
            if gone := self._left(tier, keys):
                return Miss.after(min(gone))
        return Miss.GONE if any(key in self._seen for key in keys) else None

    def _left(self, tier: Tier, keys: Sequence[ChunkKey]) -> set[Gone]:
        try:
            return set(tier.left(keys).values()) if isinstance(tier, Recalls) else set()
        except TierError as exc:
            self.failed(tier, exc)
            return set()

    def _see(self, keys: Mapping[ChunkKey, Tier]) -> None:
        with self._lock:
            for key in keys:
                self._seen.pop(key, None)
                self._seen[key] = None
            while len(self._seen) > KNOWN:
                self._seen.pop(next(iter(self._seen)))
