"""The store: KV of a token prefix, kept in tiers, verified before anybody sees it.

Nothing that goes wrong in a tier leaves this file as an exception: a chunk that is missing, damaged
or foreign ends the loaded prefix, and the engine computes the rest.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from preread.metrics import Metrics
from preread.store.asking import Asker
from preread.store.chunk import ChunkHeader
from preread.store.codec import Codec, RawCodec
from preread.store.keys import OVERHEAD, Box, Epochs, Geometry, Span
from preread.store.layout import Layout
from preread.store.reading import Reading
from preread.store.reports import End, LoadReport, Miss, SaveReport
from preread.store.tally import Tally
from preread.store.tiers.base import ChunkKey, Room, Tier, fresh
from preread.store.upkeep import SweepReport, Upkeep, VerifyReport
from preread.types import Fingerprint

if TYPE_CHECKING:
    from preread.store.codec import Tensor
    from preread.store.keys import Tokens
    from preread.store.seal import Keyring

# (box, tensor [layers, 2 (K, V), KV heads, tokens, head_dim] on the CPU). The tensor is the
# receiver's own.
Sink = Callable[[Box, "Tensor"], None]
Source = Callable[[Box], "Tensor"]  # box -> tensor of that shape and the geometry's dtype


class Found(NamedTuple):
    """Where the chunks of a prefix are, as the tiers say: no proof. tokens: leading tokens of which
    some tier holds every chunk; places: the nearest tier of each chunk that one holds; dead: tiers
    that could not be asked; end: why it is not the whole prefix."""

    spans: tuple[tuple[Span, tuple[ChunkKey, ...]], ...]
    tokens: int
    places: Mapping[ChunkKey, Tier]
    dead: tuple[Tier, ...]
    end: End | None


class Store:
    """KV of one model (geometry, fingerprint) for one tenant in some tiers, nearest first.
    Thread-safe as far as its tiers are, and they must be."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        geometry: Geometry,
        fingerprint: Fingerprint,
        *,
        tenant: str = "default",
        shared: bool = False,
        metrics: Metrics | None = None,
        log: logging.Logger | None = None,
        codec: Codec | None = None,
        keyring: Keyring | None = None,
        epochs: Callable[[], Epochs | None] = Epochs.never,
        room: Room = fresh,
    ) -> None:
        """shared, keyring, epochs: see Layout. room: where values are read to."""
        self._layout = Layout(
            geometry,
            fingerprint,
            tenant,
            codec or RawCodec(),
            shared=shared,
            keyring=keyring,
            epochs=epochs,
        )
        self._metrics = metrics or Metrics()
        self._room = room
        log = log or logging.getLogger("preread.store")
        self._upkeep = Upkeep(tiers, self._metrics, log)
        self._asker = Asker(tiers, self._upkeep, self._metrics, log)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a whole chunk: a prefix cut at a multiple of it has no chunk of its own."""
        return self._layout.geometry.chunk_tokens

    def keys(self, tokens: Tokens) -> tuple[str, ...]:
        """Hex keys of all chunks of these tokens: what gc must keep."""
        return tuple(
            key.hex() for span in self._layout.spans(tokens) for key in self._layout.keys(span)
        )

    def find(self, tokens: Tokens) -> Found:
        """Ask each tier, nearest first, once for all that no nearer one holds."""
        spans = tuple((span, tuple(self._layout.keys(span))) for span in self._layout.spans(tokens))
        keys = [key for _, keys in spans for key in keys]
        places, dead = self._asker.places(keys, self._asker.tiers)
        for span, parts in spans:
            if lost := [key for key in parts if key not in places]:
                gone = any(map(self._asker.gone, lost))
                why = Miss.TIER_FAILED if dead else Miss.GONE if gone else Miss.TOO_SHORT
                end = End.at(why, span.start)
                self._metrics.add(f"store.miss.{end.reason.value}")
                return Found(spans, span.start, places, tuple(dead), end)
        held = spans[-1][0].end if spans else 0
        return Found(spans, held, places, tuple(dead), None)

    def match(self, tokens: Tokens) -> int:
        """How many leading tokens the tiers say they hold, in whole chunks. What a tier
        says is no proof: `load` may find less."""
        return self.find(tokens).tokens

    def load(
        self, tokens: Tokens, upto: int, sink: Sink, *, start: int = 0, found: Found | None = None
    ) -> LoadReport:
        """Deliver the KV of tokens [start, upto), as far as whole verified chunks reach.

        Spans that end at or before `start` are taken to be there already; the one that holds
        `start` is delivered whole. Every box is verified before the sink gets it, in order; those
        of a span that proves incomplete lie beyond the reported tokens and must be ignored. What
        the sink raises is passed on, nothing else is raised. After a bad chunk the rest is still
        verified, not delivered: one load finds all that is bad, and the next `save` mends it.
        found: what `find` said of these tokens, not to ask again.
        """
        began = time.perf_counter()
        found = found or self.find(tokens)
        wanted = [(span, keys) for span, keys in found.spans if start < span.end <= upto]
        keys = [key for _, keys in wanted for key in keys]
        tally = Tally(start)
        chunks = (chunk for span, _ in wanted for chunk in self._layout.chunks(span))
        reading = Reading(
            self._asker, keys, found.places, self._layout.unpack, self._room, found.dead
        )
        with closing(reading):
            for n, chunk in enumerate(chunks):
                taken = reading.take(n, chunk)
                if isinstance(taken, Miss):
                    tally.missed(taken, chunk.box.token_start)
                elif tally.end is None:
                    sink(chunk.box, self._layout.decode(chunk.box, taken.payload))
                    ends = self._layout.ends_span(chunk.box)
                    tally.served(taken.tier, chunk.box, taken.payload.nbytes, ends)
                if tally.end is not None and not reading.faults:
                    break  # a plain miss
        report = tally.report(began, reading.faults, self._asker.tiers)
        self._count(report, found)
        return report

    def save(self, tokens: Tokens, start: int, source: Source) -> SaveReport:
        """Write the chunks that end after token `start` to every tier that lacks them.

        The source is asked once per box, in order, and only for boxes some tier lacks; what it
        raises is passed on. A tier that fails or is full is left out for the rest of this call.
        """
        wanted = [
            (span.end, chunk)
            for span in self._layout.spans(tokens)
            for chunk in self._layout.chunks(span)
        ]
        plans = {tier: self._plan(tier, wanted, start) for tier in self._asker.tiers}
        known = bool(wanted) or len(tokens) == 0  # else the epochs cannot be told, see Layout
        stored = known and all(whole for _, whole in plans.values())
        chunks = nbytes = skipped = 0
        for chunk in (chunk for end, chunk in wanted if end > start):
            takers = [tier for tier, (lacking, _) in plans.items() if chunk.key in lacking]
            if not takers:
                skipped += 1
                continue
            parts = self._layout.pack(chunk, source(chunk.box))
            for tier in takers:
                if self._asker.write(tier, chunk.key, parts):
                    chunks += 1
                    nbytes += chunk.payload_nbytes + OVERHEAD
                else:
                    stored, plans[tier] = False, (set(), False)
        self._metrics.add("store.save_chunks", chunks)
        self._metrics.add("store.save_bytes", nbytes)
        self._metrics.add("store.save_skipped", skipped)
        keys = tuple(chunk.key.hex() for _, chunk in wanted)
        return SaveReport(chunks, nbytes, skipped, stored, keys)

    def verify(self, keys: Iterable[str] | None = None, *, deep: bool = True) -> VerifyReport:
        """See Upkeep.verify."""
        return self._upkeep.verify(keys, deep=deep)

    def sweep(self, live: frozenset[str], grace_s: float) -> SweepReport:
        """See Upkeep.sweep."""
        return self._upkeep.sweep(live, grace_s)

    def _plan(
        self, tier: Tier, wanted: list[tuple[int, ChunkHeader]], start: int
    ) -> tuple[set[ChunkKey], bool]:
        """Which chunks to write to the tier, and whether it can then hold the whole prefix. What
        would go beyond its budget is left out: it would evict the prefix's own beginning, without
        which the rest is worth nothing. A sixteenth stays free, see DiskTier. What is held is
        touched, or else it might be the first to make room for what is written now."""
        held = self._asker.held(tier, [chunk.key for _, chunk in wanted], touch=True)
        if held is None or len(held) == len(wanted):
            return set(), held is not None  # usage looks at every chunk there is: not for nothing
        if (usage := self._asker.usage(tier)) is None:
            return set(), False
        budget = usage.budget
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

    def _count(self, report: LoadReport, found: Found) -> None:
        self._metrics.add("store.load_misses", report.end is not None)
        self._metrics.add("store.load_chunks", sum(row.chunks for row in report.served))
        self._metrics.add("store.load_bytes", report.nbytes)
        self._metrics.add("store.load_ms", report.ms)
        if report.end is not None and report.tokens < found.tokens:  # else `find` has counted it
            self._metrics.add(f"store.miss.{report.end.reason.value}")
        for row in report.served:
            self._metrics.add(f"store.hit_chunks.{row.tier}", row.chunks)
            self._metrics.add(f"store.hit_tokens.{row.tier}", row.tokens)
            self._metrics.add(f"store.hit_bytes.{row.tier}", row.nbytes)
            self._metrics.add(f"store.hit_ms.{row.tier}", row.ms)
