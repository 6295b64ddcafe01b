"""Prefixes being read: which tokens of the tree are wanted and missing, a chunk at a time.

Whoever wants a prefix (an explicit build, a group of rows) holds a `Reading` of it. Work is found
by looking at the tree, so that a stretch wanted by many is computed once, and nothing has to be
told when a segment splits or when a tier delivers part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preread.engine.arena import Run
from preread.engine.prefix import PrefixTree, Segment
from preread.engine.step import Chunk

if TYPE_CHECKING:
    from preread.types import Int32Array


@dataclass(slots=True, eq=False)
class Reading:
    """The first `upto` tokens of the path to `leaf`, held until released. cached: of them, ready
    when it began; runs: where they lie (fixed while held). active: whether missing tokens are to be
    computed now; outside: no waiting group holds it, so it is released whatever the engine does;
    progress: told (ready, upto) as they are; error: why they cannot be."""

    leaf: Segment
    upto: int
    cached: int
    runs: list[Run]
    active: bool = False
    outside: bool = True
    progress: Callable[[int, int], None] | None = None
    error: Exception | None = None


class Readings:
    """All readings of an engine. The engine thread alone calls these."""

    def __init__(self, tree: PrefixTree, chunk: int) -> None:
        self._tree = tree
        self._chunk = chunk
        self._all: list[Reading] = []

    @property
    def waiting(self) -> bool:
        """Somebody outside holds a prefix, so memory may still become free."""
        return any(r.outside for r in self._all)

    @property
    def busy(self) -> bool:
        """Tokens are to be computed."""
        return any(r.active and r.error is None and self.ready(r) < r.upto for r in self._all)

    def hold(self, tokens: Int32Array, now: float, *, linked: bool = True) -> Reading | None:
        """Take a place in the tree for `tokens`; None while there is no memory."""
        leaf = self._tree.insert(tokens, now, linked=linked)
        if leaf is None:
            return None
        self._tree.pin(leaf)
        cached = self._tree.ready(leaf, len(tokens))
        runs = self._tree.runs(leaf, 0, len(tokens))
        reading = Reading(leaf, len(tokens), cached, runs)
        self._all.append(reading)
        return reading

    def release(self, reading: Reading, now: float) -> None:
        self._all.remove(reading)
        self._tree.unpin(reading.leaf, now)

    def ready(self, reading: Reading) -> int:
        return self._tree.ready(reading.leaf, reading.upto)

    def loading(self, reading: Reading, on: bool) -> None:
        """While on, the missing tokens come from a tier and are not computed."""
        for segment in self._tree.path(reading.leaf, reading.upto):
            segment.loading = on and not segment.complete

    def loaded(self, reading: Reading, upto: int) -> None:
        """A tier has delivered the first `upto` tokens."""
        self._tree.advance(reading.leaf, upto)
        self.loading(reading, False)
        self._tell_all()

    def chunks(self, budget: int) -> list[Chunk]:
        """The next tokens to compute, at most `budget`, each missing segment once."""
        out: list[Chunk] = []
        seen: set[int] = set()
        for reading in self._all:
            if not reading.active or reading.error is not None or budget <= 0:
                continue
            base = self.ready(reading)
            path = self._tree.path(reading.leaf, reading.upto)
            segment = next((s for s in path if not s.complete), None)
            if base == reading.upto or segment is None or segment.loading or id(segment) in seen:
                continue
            seen.add(id(segment))
            n = min(self._chunk, budget, segment.end - base)
            tokens = segment.tokens[segment.ready : segment.ready + n]
            before, here = ((0, base), (base, base + n))
            path_runs, runs = (tuple(self._tree.runs(segment, *x)) for x in (before, here))
            out.append(Chunk(segment, base, tokens, path_runs, runs))
            budget -= n
        return out

    def commit(self, chunks: tuple[Chunk, ...]) -> None:
        """The chunks are computed: tell the tree and whoever watches."""
        for chunk in chunks:
            self._tree.advance(chunk.leaf, chunk.base + len(chunk.tokens))
        self._tell_all()

    def tell(self, reading: Reading) -> None:
        """Call its progress, if it is being computed."""
        if reading.active and reading.progress is not None:
            reading.progress(self.ready(reading), reading.upto)

    def _tell_all(self) -> None:
        for reading in self._all:
            self.tell(reading)

    def fail(self, chunks: tuple[Chunk, ...], error: Exception) -> None:
        """These chunks cannot be computed: nobody who needs them waits any longer."""
        lost = {id(chunk.leaf) for chunk in chunks}
        for reading in self._all:
            path = self._tree.path(reading.leaf, reading.upto)
            if reading.active and any(id(s) in lost for s in path if not s.complete):
                reading.error = error
                self.tell(reading)
