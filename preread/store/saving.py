"""Saving: every tier gets the chunks it lacks, as far as its budget reaches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from preread.metrics import Metrics
from preread.store.asking import Asker
from preread.store.chunk import ChunkHeader
from preread.store.keys import OVERHEAD, Box
from preread.store.layout import Layout
from preread.store.rates import Rates
from preread.store.reports import SaveReport
from preread.store.tiers.base import ChunkKey, Tier
from preread.store.worth import saved, use
from preread.store.writeback import WriteBack

if TYPE_CHECKING:
    from preread.store.codec import Tensor
    from preread.store.keys import Tokens


class Manner(NamedTuple):
    """How a tier is written. behind: in the background; second_touch: only what a nearer tier
    holds already, which is what is used a second time."""

    behind: bool = False
    second_touch: bool = False


THROUGH = Manner()
Source = Callable[[Box], "Tensor"]  # box -> tensor of that shape and the geometry's dtype


class Saver:
    """Writes KV of one layout to the tiers."""

    def __init__(
        self,
        asker: Asker,
        layout: Layout,
        metrics: Metrics,
        rates: Rates,
        manners: Mapping[str, Manner],
        behind: WriteBack,
    ) -> None:
        """manners: by the tier's name, THROUGH for others."""
        self._asker = asker
        self._layout = layout
        self._metrics = metrics
        self._rates = rates
        self._manners = manners
        self._behind = behind

    def save(self, tokens: Tokens, start: int, source: Source) -> SaveReport:
        """See Store.save."""
        wanted = [
            (span.end, chunk)
            for span in self._layout.spans(tokens)
            for chunk in self._layout.chunks(span)
        ]
        plans = self._plans(wanted, start)
        self._count_use(wanted, plans)
        known = bool(wanted) or len(tokens) == 0  # else the epochs cannot be told, see Layout
        stored = known and all(whole for _, whole in plans.values())
        chunks = nbytes = skipped = pending = 0
        refusing: set[Tier] = set()
        for chunk in (chunk for end, chunk in wanted if end > start):
            takers = [tier for tier, (lacking, _) in plans.items() if chunk.key in lacking]
            if not takers:
                skipped += 1
                continue
            parts = self._layout.pack(chunk, source(chunk.box))
            later = [tier for tier in takers if self._manner(tier).behind]
            if later:  # the tensor's memory may be another's soon
                value = b"".join(parts)
                for tier in later:
                    if self._behind.add(tier, chunk.key, value, refusing):
                        pending += 1
                    else:
                        stored, plans[tier] = False, (set(), False)
            for tier in (tier for tier in takers if tier not in later):
                if self._asker.write(tier, chunk.key, parts):
                    chunks += 1
                    nbytes += chunk.payload_nbytes + OVERHEAD
                else:
                    stored, plans[tier] = False, (set(), False)
                self._demote(tier)
        self._metrics.add("store.save_chunks", chunks)
        self._metrics.add("store.save_bytes", nbytes)
        self._metrics.add("store.save_skipped", skipped)
        keys = tuple(chunk.key.hex() for _, chunk in wanted)
        return SaveReport(chunks, nbytes, skipped, stored, keys, pending)

    def _count_use(
        self,
        wanted: list[tuple[int, ChunkHeader]],
        plans: Mapping[Tier, tuple[set[ChunkKey], bool]],
    ) -> None:
        """Tell each tier what this use of the prefix saves it for."""
        chunks = [(chunk.key, chunk.payload_nbytes + OVERHEAD) for _, chunk in wanted]
        nbytes = sum(size for _, size in chunks)
        end = wanted[-1][0] if wanted else 0
        prefill = self._rates.prefill()
        for tier, (lacking, _) in plans.items() if wanted else ():
            per_byte = saved(end, nbytes, len(chunks), prefill, self._rates.pace(tier.name))
            missing = sum(size for key, size in chunks if key in lacking)
            self._asker.used(tier, use(chunks, missing, per_byte))

    def _demote(self, tier: Tier) -> None:
        """What fell out of a tier to make room, and had been used again, goes to the next one that
        takes it, if no other has it."""
        for key, value in self._asker.fallen(tier):
            behind = self._asker.tiers[self._asker.tiers.index(tier) + 1 :]
            places, _ = self._asker.places([key], behind)
            if any(key in self._behind.waiting(other) for other in behind) or places:
                continue
            for other in behind:
                if self._manner(other).behind:
                    taken = self._behind.add(other, key, value)
                else:
                    taken = self._asker.write(other, key, [value], offered=True)
                if taken:
                    self._metrics.add(f"store.demoted.{other.name}")
                    break

    def _manner(self, tier: Tier) -> Manner:
        return self._manners.get(tier.name, THROUGH)

    def _plans(
        self, wanted: list[tuple[int, ChunkHeader]], start: int
    ) -> dict[Tier, tuple[set[ChunkKey], bool]]:
        """See _plan, of each tier; what is on its way to one counts as held."""
        plans: dict[Tier, tuple[set[ChunkKey], bool]] = {}
        nearer: set[ChunkKey] = set()
        keys = [chunk.key for _, chunk in wanted]
        for tier in self._asker.tiers:
            held = self._asker.held(tier, keys, touch=True)
            if held is None:
                plans[tier] = set(), False
                continue
            held |= self._behind.waiting(tier).intersection(keys)
            lacking, whole = self._plan(tier, wanted, start, held)
            if self._manner(tier).second_touch:
                lacking &= nearer
            plans[tier] = lacking, whole
            nearer |= held
        return plans

    def _plan(
        self,
        tier: Tier,
        wanted: list[tuple[int, ChunkHeader]],
        start: int,
        held: set[ChunkKey],
    ) -> tuple[set[ChunkKey], bool]:
        """Which chunks to write to the tier, and whether it can then hold the whole prefix. What
        would go beyond its budget is left out: it would evict the prefix's own beginning, without
        which the rest is worth nothing. A sixteenth stays free, see DiskTier. What is held was
        touched, or else it might be the first to make room for what is written now."""
        if len(held) == len(wanted):
            return set(), True
        budget = tier.budget
        limit = budget - budget // 16 if budget else sys.maxsize
        size, lacking, gap = 0, set(), False
        for end, chunk in wanted:
            size += chunk.payload_nbytes + OVERHEAD
            if chunk.key not in held and size <= limit:
                gap = gap or end <= start
                lacking.update([chunk.key] if end > start else [])
        if size > limit:
            self._asker.refused(tier, f"one context of {size} bytes in a budget of {budget}")
        if gap:
            self._asker.refused(
                tier, f"chunks before token {start} are gone; save from 0 to mend it"
            )
        return lacking, size <= limit and not gap
