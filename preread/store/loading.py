"""Loading: find which tier holds what, choose how much of it is worth loading, and bring it: from
its beginning on, or from its end while the beginning is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from math import inf
from typing import TYPE_CHECKING, NamedTuple, Protocol

from preread.metrics import Metrics
from preread.store.arriving import Arrivals, Place
from preread.store.asking import Asker
from preread.store.chunk import ChunkHeader
from preread.store.keys import OVERHEAD, Box, Span
from preread.store.layout import Layout
from preread.store.order import Layered, Order
from preread.store.policy import Choice, Patience, Piece, decide, loading, saved_by_layer
from preread.store.rates import Rates
from preread.store.reading import Reading
from preread.store.reports import End, LoadReport, Miss
from preread.store.tally import Tally
from preread.store.tiers.base import ChunkKey, Room, Tier

if TYPE_CHECKING:
    from preread.store.codec import Tensor
    from preread.store.keys import Tokens

STALE_S = 600.0  # a tier found too slow so long ago is tried again
LEAST_SAVED = 0.01  # of load and tail, for a load by layer: it keeps nothing if it ends early

# (box, tensor [layers, 2 (K, V), KV heads, tokens, head_dim] on the CPU). The tensor
# stays as it is for as long as it is held, and is not to be written to.
Sink = Callable[[Box, "Tensor"], None]


class Front(Protocol):
    """Who computes tokens from their front while they are loaded from their end, as the load sees
    it. Called from the loading thread."""

    def listen(self, stop: Callable[[], None]) -> None:
        """Call it, from any thread, when nothing more is wanted."""
        ...

    def begin(self, start: int, end: int) -> bool:
        """Tokens [start, end) are the next that come. False: they are not wanted, nor is any
        before them."""
        ...

    def fill(self, box: Box, kv: Tensor) -> None:
        """A verified box of these, whose memory stays as it is for as long as it is held."""
        ...

    def end(self, start: int, end: int, *, whole: bool) -> int:
        """All boxes of tokens [start, end) came; or, not whole, they are not to be had. How many
        of them nobody had computed."""
        ...


class Found(NamedTuple):
    """Where the chunks of a prefix are, as the tiers say: no proof. tokens: leading tokens of which
    some tier holds every chunk; places: the nearest tier of each chunk that one holds; dead: tiers
    that could not be asked; end: why it is not the whole prefix."""

    spans: tuple[tuple[Span, tuple[ChunkKey, ...]], ...]
    tokens: int
    places: Mapping[ChunkKey, Tier]
    dead: tuple[Tier, ...]
    end: End | None

    def chosen(self, choice: Choice) -> End | None:
        """Why a load of that choice, were it to succeed, would not bring the whole prefix."""
        return End(Miss.TOO_SLOW, choice.upto) if choice.upto < self.tokens else self.end


class Loader:
    """Brings KV of one layout from the tiers."""

    def __init__(
        self,
        asker: Asker,
        layout: Layout,
        metrics: Metrics,
        rates: Rates,
        room: Room,
        always: bool,
    ) -> None:
        """always: load whatever is held, however long it takes."""
        self._asker = asker
        self._layout = layout
        self._metrics = metrics
        self._rates = rates
        self._room = room
        self._always = always

    def find(self, tokens: Tokens) -> Found:
        """See Store.find."""
        spans = tuple(self._layout.keyed(self._layout.spans(tokens)))
        keys = [key for _, keys in spans for key in keys]
        places, dead = self._asker.places(keys, self._asker.tiers)
        for span, parts in spans if len(places) < len(keys) else ():
            if lost := [key for key in parts if key not in places]:
                why = Miss.TIER_FAILED if dead else self._asker.lost(lost) or Miss.TOO_SHORT
                end = End.at(why, span.start)
                self._metrics.add(f"store.miss.{end.reason.value}")
                return Found(spans, span.start, places, tuple(dead), end)
        held = spans[-1][0].end if spans else 0
        return Found(spans, held, places, tuple(dead), None)

    def choose(self, found: Found, start: int, *, both: bool) -> Choice:
        """See Store.choose."""
        if self._always:
            return Choice(found.tokens, 0.0, inf)
        pieces = self._pieces(found, start)
        names = {tier for piece in pieces for tier, _, _ in piece.parts}
        paces = {name: pace for name in names if (pace := self._rates.pace(name))}
        besides = self._rates.slowed if both else None
        choice = decide(start, pieces, paces, self._rates.prefill(), besides)
        if choice.upto < found.tokens:
            young = {n: p for n, p in paces.items() if self._rates.age_s(n) < STALE_S}
            if len(young) < len(paces):
                choice = decide(start, pieces, young, self._rates.prefill(), besides)
        self._metrics.add(f"store.miss.{Miss.TOO_SLOW.value}", choice.upto < found.tokens)
        return choice

    def by_layer(self, found: Found, choice: Choice, tail: int) -> bool:
        """See Store.by_layer."""
        groups, prefill = self._layout.geometry.layer_groups, self._rates.prefill()
        whole = bool(found.spans) and choice.upto == found.spans[-1][0].end
        if not whole or choice.meets is not None or prefill is None:
            return False
        tiers = {tier.name for tier in found.places.values()}
        tail_s = prefill.seconds(choice.upto, choice.upto + tail)
        saved_s = saved_by_layer(choice.load_s, tail_s, groups, self._rates.slowed(tiers))
        return saved_s >= LEAST_SAVED * (choice.load_s + tail_s) > 0

    def load(
        self,
        found: Found,
        upto: int,
        sink: Sink,
        start: int,
        choice: Choice | None,
        place: Place = lambda box: None,
        came: Callable[[], None] = lambda: None,
        listen: Callable[[Callable[[], None]], None] | None = None,
        layers: Layered | None = None,
    ) -> LoadReport:
        """See Store.load."""
        began = time.perf_counter()
        patience = self._patience(found, start, upto) if choice and not self._always else None
        until = began + patience.deadline_s if patience else inf if listen else None
        wanted = [(span, keys) for span, keys in found.spans if start < span.end <= upto]
        order = Order([self._layout.chunks(span, keys) for span, keys in wanted], layers)
        chunks, tally = order.chunks, Tally(start)
        reading = self._reading(found, chunks, until, place)
        with closing(reading):
            if listen is not None:
                listen(reading.stop)
            for n, chunk in enumerate(chunks):
                taken = reading.take(n, chunk)
                came()  # what was stopped says nothing of the tier
                if isinstance(taken, Miss):
                    tally.cut(taken, chunk.box.token_start)
                elif tally.wants(chunk.box.token_end):
                    if taken.payload is not None:
                        sink(chunk.box, self._layout.decode(chunk.box, taken.payload))
                    tally.served(taken.tier, chunk.payload_nbytes)
                    if self._layout.ends_span(chunk.box):
                        tally.reached(chunk.box.token_start, chunk.box.token_end)
                    if tally.end is None and order.ends_round(n):
                        order.came(n)
                        left, share = n + 1 < len(chunks), order.share(n)
                        if left and patience and patience.ends(tally.done, tally.elapsed_s, share):
                            tally.cut(Miss.TOO_SLOW, tally.done)
                over = Miss.TOO_SLOW in (taken, tally.end and tally.end.reason)
                if tally.end and (over or not (reading.faults or order.goes_on(tally.end.token))):
                    break  # nothing more is to be found out; a late value is not the next one's
        tally.measure(self._rates, None if reading.stopped else reading.late)
        whole = tally.report(began, reading.faults, self._asker.tiers)
        self._count(whole, found)
        if whole.end is None and choice:
            whole = whole._replace(end=found.chosen(choice))
        return whole

    def meet(self, found: Found, start: int, choice: Choice, front: Front) -> LoadReport:
        """See Store.meet."""
        began, tally, n = time.perf_counter(), Tally(start), 0
        spans = [found for found in found.spans if start < found[0].end <= choice.upto][::-1]
        wanted = [(span, self._layout.chunks(span, keys)) for span, keys in spans]
        every = [chunk for _, chunks in wanted for chunk in chunks]
        # Verified by who reads, but not straight to its place, as the front may be there first.
        reading = self._reading(found, every, inf, lambda box: None)
        front.listen(reading.stop)
        with closing(reading):
            for span, chunks in wanted:
                first = max(span.start, start)
                if not front.begin(first, span.end):
                    break
                why = self._take_span(reading, chunks, n, front, tally)
                if why is Miss.TOO_SLOW:
                    break  # they have met
                n += len(chunks)
                tally.completed(front.end(first, span.end, whole=why is None))
                if why is not None:
                    tally.missed(why, span.start)
        tally.measure_beside(self._rates, reading.late)
        whole = tally.report(began, reading.faults, self._asker.tiers)
        self._count(whole, found)
        return whole if whole.end else whole._replace(end=found.chosen(choice))

    def _reading(
        self, found: Found, chunks: list[ChunkHeader], until: float | None, place: Place
    ) -> Reading:
        """One pass over chunks, in this order; what is verified goes to its place."""
        expected = {chunk.key: chunk for chunk in chunks}
        return Reading(
            self._asker, [chunk.key for chunk in chunks], found.places, self._layout.unpack,
            self._room, found.dead, until,
            lambda: Arrivals(self._layout, expected, self._room, place),
        )  # fmt: skip

    def _take_span(
        self, reading: Reading, chunks: list[ChunkHeader], n: int, front: Front, tally: Tally
    ) -> Miss | None:
        """All chunks of a span, the first of which is the nth key. Why it is not whole."""
        why: Miss | None = None
        for chunk in chunks:
            taken = reading.take(n, chunk)
            n += 1
            if isinstance(taken, Miss):
                why = why or taken
                if taken is Miss.TOO_SLOW:
                    return taken
            elif why is None:
                assert taken.payload is not None  # as it had no place
                front.fill(chunk.box, self._layout.decode(chunk.box, taken.payload))
                tally.served(taken.tier, taken.payload.nbytes)
        return why

    def _patience(self, found: Found, start: int, upto: int) -> Patience | None:
        if (prefill := self._rates.prefill()) is None:
            return None
        pieces = self._pieces(found, start)
        names = {tier for piece in pieces for tier, _, _ in piece.parts}
        paces = {name: pace for name in names if (pace := self._rates.pace(name))}
        known = loading(pieces, paces).get if len(paces) == len(names) else None
        return Patience(start, upto, prefill, known and (lambda token: known(token, 0.0)))

    def _pieces(self, found: Found, start: int) -> list[Piece]:
        pieces = []
        for span, keys in found.spans:
            if start < span.end <= found.tokens:
                held: dict[str, tuple[int, int]] = {}
                for key, nbytes in zip(keys, self._layout.sizes(span), strict=True):
                    size, chunks = held.get(name := found.places[key].name, (0, 0))
                    held[name] = size + nbytes + OVERHEAD, chunks + 1
                pieces.append(Piece(span.end, tuple((name, *much) for name, much in held.items())))
        return pieces

    def _count(self, report: LoadReport, found: Found) -> None:
        self._metrics.add("store.load_misses", report.end is not None)
        self._metrics.add("store.load_chunks", sum(row.chunks for row in report.served))
        self._metrics.add("store.load_bytes", report.nbytes)
        self._metrics.add("store.load_ms", report.ms)
        if report.end is not None and report.end.token < found.tokens:  # else `find` has counted
            self._metrics.add(f"store.miss.{report.end.reason.value}")
        for row in report.served:
            self._metrics.add(f"store.hit_chunks.{row.tier}", row.chunks)
            self._metrics.add(f"store.hit_tokens.{row.tier}", row.tokens)
            self._metrics.add(f"store.hit_bytes.{row.tier}", row.nbytes)
            self._metrics.add(f"store.hit_ms.{row.tier}", row.ms)
