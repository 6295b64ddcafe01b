"""The store: KV of a token prefix, kept in tiers, verified before anybody sees it.

Nothing that goes wrong in a tier leaves this file as an exception: a chunk that is missing, damaged
or foreign ends the loaded prefix, and the engine computes the rest.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from preread.errors import TierError
from preread.metrics import Metrics
from preread.store.chunk import ChunkFault, ChunkHeader, Fault
from preread.store.codec import Codec, RawCodec
from preread.store.keys import OVERHEAD, Box, Epochs, Geometry
from preread.store.layout import Layout
from preread.store.tiers.base import ChunkKey, ChunkUnreadable, Tier
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


class LoadReport(NamedTuple):
    """tokens: end of the unbroken prefix that is now there; nbytes: payload delivered; ms: wall
    time, the sink's included; faults: (reason, hex key) of chunks that were set aside."""

    tokens: int
    nbytes: int
    ms: float
    faults: tuple[tuple[str, str], ...]


class SaveReport(NamedTuple):
    """chunks, nbytes: written, counted per tier; skipped: not tried, as every tier holds them, has
    failed or has no room; stored: every tier now holds the whole prefix, to its knowledge; keys:
    hex keys of all chunks of the tokens, for the catalog."""

    chunks: int
    nbytes: int
    skipped: int
    stored: bool
    keys: tuple[str, ...]


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
        epochs: Callable[[], Epochs] = Epochs.never,
    ) -> None:
        """shared, keyring, epochs: see Layout."""
        self._tiers = tuple(tiers)
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
        self._log = log or logging.getLogger("preread.store")
        self._upkeep = Upkeep(self._tiers, self._metrics, self._log)
        # Bad chunks that could not be set aside: neither matched nor read until written anew.
        self._suspect: set[tuple[str, ChunkKey]] = set()

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a whole chunk: a prefix cut at a multiple of it has no chunk of its own."""
        return self._layout.geometry.chunk_tokens

    def keys(self, tokens: Tokens) -> tuple[str, ...]:
        """Hex keys of all chunks of these tokens: what gc must keep."""
        return tuple(
            key.hex() for span in self._layout.spans(tokens) for key in self._layout.keys(span)
        )

    def match(self, tokens: Tokens) -> int:
        """How many leading tokens the tiers say they hold, in whole chunks. What a tier
        says is no proof: `load` may find less."""
        spans = [(span.end, self._layout.keys(span)) for span in self._layout.spans(tokens)]
        missing = {key for _, keys in spans for key in keys}
        for tier in self._tiers:
            if missing:
                missing -= self._held(tier, list(missing)) or set()
        held = 0
        for end, keys in spans:
            if not missing.isdisjoint(keys):
                break
            held = end
        return held

    def load(self, tokens: Tokens, upto: int, sink: Sink, *, start: int = 0) -> LoadReport:
        """Deliver the KV of tokens [start, upto), as far as whole verified chunks reach.

        Spans that end at or before `start` are taken to be there already; the one that holds
        `start` is delivered whole. Every box is verified before the sink gets it, in order; those
        of a span that proves incomplete lie beyond the reported tokens and must be ignored. What
        the sink raises is passed on, nothing else is raised. After a bad chunk the rest is still
        verified, not delivered: one load finds all that is bad, and the next `save` mends it.
        """
        began = time.perf_counter()
        tiers = list(self._tiers)
        faults: list[tuple[str, str]] = []
        done, nbytes, chunks, whole = start, 0, 0, True
        spans = (span for span in self._layout.spans(tokens) if start < span.end <= upto)
        for chunk in (chunk for span in spans for chunk in self._layout.chunks(span)):
            payload = self._read(tiers, chunk, faults)
            whole = whole and payload is not None
            if payload is not None and whole:
                sink(chunk.box, self._layout.decode(chunk.box, payload))
                nbytes, chunks = nbytes + payload.nbytes, chunks + 1
                if self._layout.ends_span(chunk.box):
                    done = chunk.box.token_end
            elif not faults:
                break  # a plain miss
        ms = (time.perf_counter() - began) * 1e3
        self._metrics.add("store.load_misses", not whole)
        self._metrics.add("store.load_chunks", chunks)
        self._metrics.add("store.load_bytes", nbytes)
        self._metrics.add("store.load_ms", ms)
        return LoadReport(done, nbytes, ms, tuple(faults))

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
        plans = {tier: self._plan(tier, wanted, start) for tier in self._tiers}
        stored = all(whole for _, whole in plans.values())
        chunks = nbytes = skipped = 0
        for chunk in (chunk for end, chunk in wanted if end > start):
            takers = [tier for tier, (lacking, _) in plans.items() if chunk.key in lacking]
            if not takers:
                skipped += 1
                continue
            parts = self._layout.pack(chunk, source(chunk.box))
            for tier in takers:
                if self._write(tier, chunk.key, parts):
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

    # -- asking tiers, whatever they do --

    def _held(self, tier: Tier, keys: list[ChunkKey], touch: bool = False) -> set[ChunkKey] | None:
        """Which of the keys the tier holds; None when it cannot be asked."""
        try:
            found = tier.find(keys, touch=touch)
        except TierError as exc:
            self._upkeep.tier_failed(tier, exc)
            return None
        pairs = zip(keys, found, strict=True)
        return {key for key, held in pairs if held and (tier.name, key) not in self._suspect}

    def _plan(
        self, tier: Tier, wanted: list[tuple[int, ChunkHeader]], start: int
    ) -> tuple[set[ChunkKey], bool]:
        """Which chunks to write to the tier, and whether it can then hold the whole prefix. What
        would go beyond its budget is left out: it would evict the prefix's own beginning, without
        which the rest is worth nothing. A sixteenth stays free, see DiskTier. What is held is
        touched, or else it might be the first to make room for what is written now."""
        held = self._held(tier, [chunk.key for _, chunk in wanted], touch=True)
        if held is None or len(held) == len(wanted):
            return set(), held is not None  # usage looks at every chunk there is: not for nothing
        try:
            budget = tier.usage().budget
        except TierError as exc:
            self._upkeep.tier_failed(tier, exc)
            return set(), False
        limit = budget - budget // 16 if budget else sys.maxsize
        size, lacking, gap = 0, set(), False
        for end, chunk in wanted:
            size += chunk.payload_nbytes + OVERHEAD
            if chunk.key not in held and size <= limit:
                gap = gap or end <= start
                lacking.update([chunk.key] if end > start else [])
        if size > limit:
            self._refused(tier, f"one context of {size} bytes in a budget of {budget}")
        if gap:
            self._refused(tier, f"chunks before token {start} are gone; save from 0 to mend it")
        return lacking, size <= limit and not gap

    def _read(
        self, tiers: list[Tier], expected: ChunkHeader, faults: list[tuple[str, str]]
    ) -> memoryview | None:
        """The verified payload from the nearest tier that has it. A tier that fails is taken off
        `tiers`: it is not asked again by this load."""
        key = expected.key
        for tier in tuple(tiers):
            if (tier.name, key) in self._suspect:
                continue
            try:
                (value,) = tier.read([key])
                if value is None:
                    continue
                if not isinstance(value, ChunkUnreadable):
                    return self._layout.unpack(value, expected)
                reason, detail = Fault.UNREADABLE, f" ({value})"
            except ChunkFault as fault:
                reason, detail = fault.reason, ""
            except TierError as exc:
                self._upkeep.tier_failed(tier, exc)
                tiers.remove(tier)
                continue
            faults.append((reason.value, key.hex()))
            if not self._upkeep.reject(tier, key, reason, detail):
                self._suspect.add((tier.name, key))
        return None

    def _write(self, tier: Tier, key: ChunkKey, parts: tuple[bytes, memoryview, bytes]) -> bool:
        try:
            if tier.write(key, parts):
                self._suspect.discard((tier.name, key))
                return True
        except TierError as exc:
            self._upkeep.tier_failed(tier, exc)
            return False
        self._refused(tier, "no room within its budget")
        return False

    def _refused(self, tier: Tier, why: str) -> None:
        self._metrics.add(f"store.refused.{tier.name}")
        self._log.warning("tier %s does not keep everything: %s.", tier.name, why)
