"""Making a prefix ready from parts that were read alone: approximate, see blend.py.

Each part is an exact prefix like any other: found in memory, loaded or computed, and kept. Its KV
is copied out of the arena before the place of the whole is asked for: nobody holds one place while
waiting for another. The whole lies in the tree behind a name (marks.py), so that no exact reader
finds it, and in no tier.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch

from preread.backend import Progress
from preread.engine.agreeing import Shares, shares
from preread.engine.arena import clip
from preread.engine.blend import Blending, chosen
from preread.engine.build import Builder, Ready
from preread.engine.caller import Caller
from preread.engine.engine import Engine
from preread.engine.reading import Reading
from preread.engine.recipe import Recipe, Recipes
from preread.engine.stretches import Stretch
from preread.engine.thread import EngineThread
from preread.errors import Cancelled, OutOfMemory
from preread.metrics import Metrics
from preread.models.chat import ChatTemplate
from preread.models.decoder import PackedDecoder
from preread.types import Brought, Built, Prefix

if TYPE_CHECKING:
    from preread.types import Int32Array, Int64Array

T = TypeVar("T")
TRIES = 3  # to find the first part still in memory when the place of the whole is there


class Blended(NamedTuple):
    """A whole that is held up to its end. computed: tokens of it, and of its parts, that were
    computed for it; brought: for its parts."""

    reading: Reading
    computed: int
    brought: Brought


class Blender:
    """Puts prefixes together, one at a time. Thread-safe."""

    def __init__(
        self,
        thread: EngineThread,
        engine: Engine,
        decoder: PackedDecoder,
        chat: ChatTemplate,
        builders: tuple[Builder, Builder],
        lease_s: float,
        metrics: Metrics,
    ) -> None:
        """engine: for its arena and its marks. builders: for the parts, and one without a store for
        the rest of the whole."""
        self._thread = thread
        self._arena = engine.arena
        self._chunk = engine.config.prefill_chunk
        self._decoder = decoder
        self.recipes = Recipes(chat, engine.marks)
        self._parts, self._rest = builders
        self._lease_s = lease_s
        self._metrics = metrics
        self._one = threading.Lock()

    def build(
        self, prefix: Prefix, lease_s: float, caller: Caller, progress: Progress | None = None
    ) -> Built:
        """See Backend.build; nothing of the whole is stored."""
        ready = self.prepare(prefix, caller, progress)
        self._rest.release(ready, lease_s)
        tokens = ready.reading.upto
        computed = min(ready.computed, tokens)
        return Built(
            tokens=tokens,
            reused_tokens=tokens - computed,
            loaded_tokens=min(ready.brought.tokens, tokens - computed),
            computed_tokens=computed,
            kv_bytes=tokens * self._arena.token_bytes,
            load_ms=ready.brought.ms,
            seconds=ready.seconds,
            brought=ready.brought,
        )

    def prepare(self, prefix: Prefix, caller: Caller, progress: Progress | None = None) -> Ready:
        """Have the whole in memory and hold it; the caller releases it. Raises as Builder.prepare
        does."""
        began, recipe = time.perf_counter(), self.recipes.of(prefix)
        if not recipe.found:  # there is nothing to put together: it is exact
            return self._part(recipe.tokens, caller, progress)
        with ExitStack() as held:
            blended = None
            if not self._known(recipe):
                with self._one:
                    blended = self._blended(recipe, caller)
                held.callback(self._let_go, blended.reading)
            ready = self._rest.prepare(recipe.tokens, caller.fresh(), progress, stores=False)
        if blended is None:
            return ready
        self._metrics.add("engine.blended_tokens", recipe.end - recipe.head)
        return replace(
            ready,
            brought=blended.brought,
            computed=blended.computed + ready.computed,
            seconds=time.perf_counter() - began,
        )

    def agreement(
        self, prefix: Prefix, turns: Sequence[tuple[str, Sequence[int]]], caller: Caller
    ) -> Shares:
        """See LocalBackend.agreement. One after the other, so that memory need not hold both."""
        recipe, read = self.recipes.of(prefix), list[torch.Tensor]()
        for prepare in (partial(self._part, recipe.real), partial(self.prepare, prefix)):
            ready = prepare(caller)
            read.append(self._arena.read(ready.reading.runs))
            self._rest.release(ready, self._lease_s)
        total = Shares()
        for question, answer in turns:
            drop, own = self.recipes.suffix(prefix, question)
            text = np.concatenate((own, np.array(answer, np.int32)))
            exact, other = (kv[:, :, :, : kv.shape[3] - drop] for kv in read)
            work = partial(shares, self._decoder, self._arena.kv, exact, other, text)
            total = total.plus(self._on_device(work))
        return total

    def _known(self, recipe: Recipe) -> bool:
        """Whether nothing need be put together."""
        return self._thread.call(lambda engine: engine.resident(recipe.tokens[: recipe.end]))

    def _blended(self, recipe: Recipe, caller: Caller) -> Blended:
        """Copy what the parts give, take the place of the whole, put it together there."""
        computed, brought, kv = 0, Brought(), list[tuple[Stretch, torch.Tensor]]()
        for number in sorted({s.part for s in recipe.found}):
            ready = self._part(recipe.parts[number], caller)
            try:
                computed, brought = computed + ready.computed, brought.plus(ready.brought)
                kv += [
                    (s, self._copied(ready.reading, s)) for s in recipe.found if s.part == number
                ]
            finally:
                self._parts.release(ready, self._lease_s)
        reading, first = self._placed(recipe, caller)
        computed, brought = computed + first.computed, brought.plus(first.brought)
        try:
            computed += self._filled(recipe, reading, kv, caller)
        except BaseException:
            self._let_go(reading)
            raise
        return Blended(reading, computed, brought)

    def _part(self, tokens: Int32Array, caller: Caller, progress: Progress | None = None) -> Ready:
        """What is exact, in memory and held; what was computed is kept."""
        ready = self._parts.prepare(tokens, caller.fresh(), progress)
        try:
            if ready.computed or ready.brought.tokens:
                self._parts.save(tokens, ready.reading)
        except BaseException:
            self._parts.release(ready, self._lease_s)
            raise
        return ready

    def _copied(self, reading: Reading, stretch: Stretch) -> torch.Tensor:
        end = stretch.start + stretch.tokens
        return self._arena.read(clip(reading.runs, stretch.start, end))

    def _placed(self, recipe: Recipe, caller: Caller) -> tuple[Reading, Ready]:
        """The place of the whole, and its beginning in it: the first part's."""
        for _ in range(TRIES):
            first, mine = self._part(recipe.parts[0], caller), caller.fresh()

            def take(engine: Engine, ready: Ready = first, to: Caller = mine) -> Reading:
                try:
                    return engine.hold(recipe.tokens, to.tell)  # placed, it holds the beginning
                finally:
                    engine.release(ready.reading, self._lease_s)

            if first.turn is not None:
                first.turn.leave()
            reading = self._thread.call(take)
            try:
                mine.wait(reading)  # until it has its place
                if self._ready(reading, 0) >= recipe.head:
                    return reading, first
            except BaseException:
                self._let_go(reading)
                raise
            self._let_go(reading)
        raise OutOfMemory(
            f"The parts of an approximate prefix of {len(recipe.real):,} tokens push one another "
            "out of memory.",
            hint="Use the exact composition, or raise engine.prefix_memory_mb.",
        )

    def _filled(
        self,
        recipe: Recipe,
        reading: Reading,
        kv: Sequence[tuple[Stretch, torch.Tensor]],
        caller: Caller,
    ) -> int:
        """Everything up to recipe.end; returns how many tokens were computed."""
        start = done = self._ready(reading, recipe.end)
        if start >= recipe.end:  # somebody needed it, and had it computed
            return 0
        try:
            whole = Blending(self._decoder, self._arena, reading.runs, recipe.real)
            for s, values in kv:
                if (skip := max(0, start - s.at)) < s.tokens:
                    whole.put(s.at + skip, values[:, :, :, skip:], s.start + skip)
            at = self._chosen(recipe, whole, start, caller)
            self._each(whole, at, whole.recompute, caller)
            done = recipe.end
        finally:
            self._thread.call(lambda engine: engine.loaded(reading, done))
        self._metrics.add("engine.blend_computed_tokens", len(at))
        return len(at)

    def _chosen(self, recipe: Recipe, whole: Blending, start: int, caller: Caller) -> Int64Array:
        """Places to compute, from `start` on: what no part has, and the share of the rest."""
        blend, deviations = recipe.blend, None
        reused = np.zeros(recipe.end, bool)
        for s in recipe.found:
            reused[s.at : s.at + s.tokens] = True
        if blend.by == "deviation" and 0 < blend.share < 1 and self._decoder.layers > 1:
            every = np.arange(start, recipe.end)
            deviations = np.zeros(recipe.end, np.float32)
            each = self._each(whole, every, whole.deviations, caller)
            deviations[start:] = np.concatenate(each)
            deviations = deviations[reused]
        again = ~reused
        again[chosen(recipe.found, blend.share, blend.by, deviations)] = True
        again[:start] = False
        return np.flatnonzero(again)

    def _each(
        self, whole: Blending, at: Int64Array, work: Callable[[Int64Array], T], caller: Caller
    ) -> list[T]:
        """One pass after the other on the engine's thread, which goes on with its steps between."""
        done = []
        for piece in whole.pieces(at, self._chunk):
            if caller.left:
                raise Cancelled("The build was cancelled.")
            done.append(self._on_device(partial(work, piece)))
        return done

    def _on_device(self, work: Callable[[], T]) -> T:
        return self._thread.call(lambda _: work())

    def _ready(self, reading: Reading, upto: int) -> int:
        """How many tokens are ready. What is missing of the first `upto` is ours from now on, until
        `loaded`."""
        return self._thread.call(lambda engine: engine.loading(reading, upto))

    def _let_go(self, reading: Reading) -> None:
        self._thread.send(lambda engine: engine.release(reading, self._lease_s))
