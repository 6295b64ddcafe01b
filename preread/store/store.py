"""The store: KV of a token prefix, kept in tiers, verified before anybody sees it.

Nothing that goes wrong in a tier leaves this file as an exception: a chunk that is missing, damaged
or foreign ends the loaded prefix, and the engine computes the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from preread.metrics import Metrics
from preread.store.arriving import Place
from preread.store.asking import Asker
from preread.store.auditing import audit
from preread.store.codec import Codec, RawCodec
from preread.store.keys import Epochs, Geometry
from preread.store.layout import Layout
from preread.store.loading import Found, Front, Loader, Sink
from preread.store.order import Layered
from preread.store.policy import Choice
from preread.store.rates import Prefill, Rates
from preread.store.reports import LoadReport, SaveReport
from preread.store.room import Recycled
from preread.store.saving import Manner, Saver, Source
from preread.store.tiers.base import Room, Tier
from preread.store.upkeep import SweepReport, Upkeep, VerifyReport
from preread.store.writeback import DRAIN_S, QUEUE_BYTES, WriteBack
from preread.types import Fingerprint

if TYPE_CHECKING:
    from preread.store.keys import Tokens
    from preread.store.seal import Keyring


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
        room: Room | None = None,
        rates: Rates | None = None,
        always: bool = False,
        manners: Mapping[str, Manner] | None = None,
        behind_bytes: int = QUEUE_BYTES,
        drain_s: float = DRAIN_S,
    ) -> None:
        """shared, keyring, epochs: see Layout. room: where values are read to, Recycled
        where none is given. rates: what is
        known of this machine. always: load whatever is held, also where computing were quicker.
        manners: how tiers are written, by name; behind_bytes, drain_s: see WriteBack."""
        self._layout = Layout(
            geometry,
            fingerprint,
            tenant,
            codec or RawCodec(),
            shared=shared,
            keyring=keyring,
            epochs=epochs,
        )
        metrics = metrics or Metrics()
        log = log or logging.getLogger("preread.store")
        self._rates = rates or Rates()
        self._upkeep = Upkeep(tiers, metrics, log)
        asker = Asker(tiers, self._upkeep, metrics, log)
        self._loader = Loader(asker, self._layout, metrics, self._rates, room or Recycled(), always)
        self._behind = WriteBack(asker.take, metrics, log, limit=behind_bytes, drain_s=drain_s)
        self._asker = asker
        self._saver = Saver(asker, self._layout, metrics, self._rates, manners or {}, self._behind)

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
        return self._loader.find(tokens)

    def match(self, tokens: Tokens) -> int:
        """How many leading tokens the tiers say they hold, in whole chunks. What a tier
        says is no proof: `load` may find less."""
        return self.find(tokens).tokens

    def choose(self, found: Found, start: int = 0, *, both: bool = False) -> Choice:
        """How much of what was found is worth loading, by what this machine has taken for loading
        and computing so far; tokens before `start` are there already. both: the caller can compute
        from the front while it is loaded from the end (`meet`). See policy.decide."""
        return self._loader.choose(found, start, both=both)

    def load(
        self,
        tokens: Tokens,
        upto: int,
        sink: Sink,
        *,
        start: int = 0,
        found: Found | None = None,
        choice: Choice | None = None,
        place: Place = lambda box: None,
        came: Callable[[], None] = lambda: None,
        listen: Callable[[Callable[[], None]], None] | None = None,
        layers: Layered | None = None,
    ) -> LoadReport:
        """Deliver the KV of tokens [start, upto), as far as whole verified chunks reach.

        Spans that end at or before `start` are taken to be there already; the one that holds
        `start` is delivered whole. Every box is verified before the sink gets it, in order; those
        of a span that proves incomplete lie beyond the reported tokens and must be ignored. What
        the sink raises, or `came`, which is called with every box wherever it goes, is passed on,
        nothing else is raised. After a bad chunk the rest is still
        verified, not delivered: one load finds all that is bad, and the next `save` mends it.
        found: what `find` said of these tokens, not to ask again. choice: what `choose` said of
        that; then a load that proves slower than computing is given up, see policy.Patience.
        place: where boxes belong, see arriving.Place. One that has a place is written there, before
        it is verified, and the sink does not get it: what lies beyond the reported tokens is
        anything, and nobody may have read it. Once this returns nothing is written any more.
        listen: given what ends all waiting for tiers, from any thread; `came` is called then, too.
        layers: boxes come by layer, and it is told as soon as all that hold a part of the first so
        many layers are verified and in place; what holds these is not written again. Such a load
        brings nothing if it is given up before its end.
        """
        found = found or self.find(tokens)
        return self._loader.load(found, upto, sink, start, choice, place, came, listen, layers)

    def by_layer(self, found: Found, choice: Choice, tail: int) -> bool:
        """Whether it pays to load a prefix by layer and to compute the first `tail` tokens behind
        it meanwhile: it is held whole, in several boxes a span, and both take time."""
        return self._loader.by_layer(found, choice, tail)

    def meet(self, found: Found, start: int, choice: Choice, front: Front) -> LoadReport:
        """Deliver the KV of tokens [start, choice.upto) span by span from the end, until it meets
        whoever computes them from their front. Boxes are verified as in `load`. A span that is not
        to be had is left to compute, those before it are brought all the same. What the front
        raises is passed on, nothing else."""
        return self._loader.meet(found, start, choice, front)

    def computed(self, start: int, end: int, seconds: float, *, beside: Iterable[str] = ()) -> None:
        """Tokens [start, end) were computed in that time; `choose` goes by it. beside: tiers that
        were loaded from meanwhile."""
        if names := tuple(beside):
            for tier in names:
                self._rates.computed_beside(tier, self.foreseen(start, end) or 0.0, seconds)
        else:
            self._rates.computed(start, end, seconds)

    def foreseen(self, start: int, end: int) -> float | None:
        """Seconds that computing tokens [start, end) takes here; None if that is not known."""
        prefill = self._rates.prefill()
        return prefill.seconds(start, end) if prefill else None

    def beside(self, tiers: Iterable[str]) -> Prefill | None:
        """What computing takes while these tiers are loaded from; None if that is not known."""
        prefill = self._rates.prefill()
        return prefill.times(self._rates.slowed(tiers).computing) if prefill else None

    def save(self, tokens: Tokens, start: int, source: Source) -> SaveReport:
        """Write the chunks that end after token `start` to every tier that lacks them.

        The source is asked once per box, in order, and only for boxes some tier lacks; what it
        raises is passed on. A tier that fails or is full is left out for the rest of this call.
        """
        return self._saver.save(tokens, start, source)

    def close(self) -> dict[str, int]:
        """Write what waits to be written and remember what was measured. Returns what could not be
        written in time, tier name -> chunks; it is logged too."""
        unwritten = self._behind.drain()
        self._rates.save()
        return unwritten

    def verify(self, keys: Iterable[str] | None = None, *, deep: bool = True) -> VerifyReport:
        """See Upkeep.verify."""
        return self._upkeep.verify(keys, deep=deep)

    def audit(self, tokens: Tokens) -> VerifyReport:
        """Read what every tier holds of these tokens as a load would; see auditing.audit."""
        return audit(self._asker, self._layout, tokens)

    def sweep(self, live: frozenset[str], grace_s: float) -> SweepReport:
        """See Upkeep.sweep."""
        return self._upkeep.sweep(live, grace_s)
