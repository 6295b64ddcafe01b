"""Making a prefix ready: what is in memory, then what a tier holds, then computing the rest; then
storing. Sync, on the caller's thread; only the engine thread touches the device's work."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from preread.backend import Progress
from preread.engine.arena import clip
from preread.engine.bringing import Bringer
from preread.engine.caller import Caller, Moved
from preread.engine.engine import Engine
from preread.engine.hiding import Hiding
from preread.engine.layers import Tail
from preread.engine.reading import Reading
from preread.engine.sharing import LOOK_S, Sharing, Turn
from preread.engine.thread import EngineThread
from preread.errors import ContextTooLong
from preread.metrics import Metrics
from preread.store.claims import Claims
from preread.store.keys import Box
from preread.store.reports import Miss
from preread.store.store import Store
from preread.store.upkeep import VerifyReport
from preread.types import Brought, Built

if TYPE_CHECKING:
    from preread.types import Int32Array


@dataclass(frozen=True, slots=True)
class Ready:
    """A prefix that is in memory and held. brought: what came from the tiers; computed: tokens
    that were computed for this call; the rest was there or is somebody else's work; turn: what
    other processes may wait for until it is released; due: see Hiding."""

    reading: Reading
    brought: Brought
    computed: int
    seconds: float
    turn: Turn | None
    due: float | None = None


class Builder:
    """Builds prefixes. Thread-safe; one load at a time, and one save (a medium is not faster for
    two), but no load waits for a save: that may wait for a slow tier to take more."""

    def __init__(
        self, thread: EngineThread, engine: Engine, store: Store | None, metrics: Metrics,
        claims: Claims | None = None, *, hides: bool = False,
    ) -> None:  # fmt: skip
        """engine: for its arena, whose held slots any thread may fill and read. claims: with which
        other processes on the same tiers are told what is computed here. hides: hits do not show,
        see Hiding; others are told nothing."""
        self._save_every_s = engine.config.save_every_s
        self._thread = thread
        self._arena = engine.arena
        self._token_bytes = engine.arena.token_bytes
        self._limit = engine.decoder.max_positions
        self._store = store
        self._metrics = metrics
        self._saves = threading.Lock()
        self._bringer: Bringer | None = None
        if store is not None:
            uploads = engine.parts.uploads(self._arena.shape.device)
            told = Metrics() if hides else metrics
            self._bringer = Bringer(thread, self._arena, uploads, store, told)
        self._hiding = Hiding(store) if store is not None and hides else None
        self._sharing = Sharing(store, None if hides else claims, metrics)

    def build(
        self, tokens: Int32Array, lease_s: float, caller: Caller, progress: Progress | None = None
    ) -> Built:
        """See Backend.build. seconds: until the prefix was ready; saving comes after. Raises
        ContextTooLong, OutOfMemory, EngineError, and Cancelled when the caller leaves."""
        ready = self.prepare(tokens, caller, progress, even=False)
        try:
            keys, stored = self.save(tokens, ready.reading)
            self._even(ready, caller)  # after: what was computed takes longer to store
        finally:
            self.release(ready, lease_s)
        return Built(
            tokens=len(tokens),
            reused_tokens=len(tokens) - ready.computed,
            loaded_tokens=ready.brought.tokens,
            computed_tokens=ready.computed,
            kv_bytes=len(tokens) * self._token_bytes,
            load_ms=ready.brought.ms,
            seconds=ready.seconds,
            chunk_keys=keys,
            stored=stored,
            brought=ready.brought,
        )

    def prepare(
        self,
        tokens: Int32Array,
        caller: Caller,
        progress: Progress | None = None,
        *,
        stores: bool = True,
        tail: Tail | None = None,
        even: bool = True,
    ) -> Ready:
        """Have the prefix in memory and hold it; the caller releases it. stores: what is computed
        for it is saved, as it goes here and in the end by the caller. tail: see Bringer.bring; it
        was computed where `brought.by_layer` says so. even: where hits do not show, not before it
        is due. Raises as `build` does."""
        if len(tokens) >= self._limit:
            raise ContextTooLong(
                f"The prefix has {len(tokens):,} tokens, the model's limit is {self._limit:,} with "
                "question and answer.",
                hint="Split the documents, or choose a model with a longer context.",
            )
        began = time.perf_counter()
        stores = stores and self._store is not None
        reading = self._thread.call(lambda engine: engine.hold(tokens, caller.tell, stores=stores))
        try:
            caller.wait(reading)  # until it has its place
            if self._hiding is not None:
                return self._hidden(tokens, reading, caller, even)
            brought = self._bring(tokens, reading, caller, tail)
            turn = self._sharing.turn(tokens, self._ready(reading)) if stores else None
            with contextlib.ExitStack() as failing:
                if turn is not None:
                    failing.callback(turn.leave)
                    brought = self._wait(turn, tokens, reading, caller, brought)
                computed = self._compute(tokens, reading, caller, progress)
                failing.pop_all()
        except BaseException:
            self._thread.send(lambda engine: engine.release(reading))
            raise
        self._metrics.add("engine.prefix_computed_tokens", computed)
        return Ready(reading, brought, computed, time.perf_counter() - began, turn)

    def _hidden(self, tokens: Int32Array, reading: Reading, caller: Caller, even: bool) -> Ready:
        """The rest of `prepare`, where it must not show whether a tier had it."""
        assert self._hiding is not None
        began = self._hiding.clock()
        due = self._hiding.due(self._ready(reading), len(tokens))
        brought = Brought() if due is None else self._bring(tokens, reading, caller)
        computed = brought.tokens + self._compute(tokens, reading, caller, None)
        self._metrics.add("engine.prefix_computed_tokens", computed)
        seconds = max(self._hiding.clock(), due or 0.0) - began
        ready = Ready(reading, Brought(), computed, seconds, None, due)
        if even:
            self._even(ready, caller)
        return ready

    def _even(self, ready: Ready, caller: Caller) -> None:
        if self._hiding is not None:
            self._hiding.wait(ready.due, caller, ready.reading)

    def release(self, ready: Ready, lease_s: float) -> None:
        """What was computed has been saved, if it ever is."""
        if ready.turn is not None:
            ready.turn.leave()
        self._thread.send(lambda engine: engine.release(ready.reading, lease_s))

    def audit(self, tokens: Int32Array) -> VerifyReport | None:
        """See Store.audit; None where nothing is kept."""
        return self._store.audit(tokens) if self._store else None

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _wait(
        self, turn: Turn, tokens: Int32Array, reading: Reading, caller: Caller, brought: Brought
    ) -> Brought:
        """Until the rest is ours to compute, or another process has: everything brought."""
        while self._ready(reading) < len(tokens):
            ours = turn.ours()
            # Also when it is ours: whose it was may just have kept what it computed.
            more = self._bring(tokens, reading, caller)
            if more.tokens:  # what was missing before is here
                brought = brought._replace(miss="", at=0).plus(more)
            if ours or more.miss == Miss.TOO_SLOW:
                break
            caller.pause(LOOK_S, reading)
        return brought

    def _ready(self, reading: Reading) -> int:
        return self._thread.call(lambda engine: engine.loading(reading, 0))

    def _bring(
        self, tokens: Int32Array, reading: Reading, caller: Caller, tail: Tail | None = None
    ) -> Brought:
        return self._bringer.bring(tokens, reading, caller, tail) if self._bringer else Brought()

    def _compute(
        self, tokens: Int32Array, reading: Reading, caller: Caller, progress: Progress | None
    ) -> int:
        """Compute what is missing; returns how much of it was for us. A long reading is saved as it
        goes, by whom it is computed for, so that a killed build is taken up where it was."""
        saved = time.perf_counter()
        self._thread.call(lambda engine: engine.read(reading))
        before: Moved | None = None
        while True:
            moved = caller.wait(reading)
            self._measure(before, moved)
            before = moved
            ready, upto, ours, _ = moved
            if progress is not None:
                progress(ready, upto)
            if ready == upto:
                return self._thread.call(lambda engine: engine.settle(reading))
            due = time.perf_counter() - saved >= self._save_every_s
            if reading.stores and ours and due:
                self._save_whole_chunks(tokens[:ready], reading)
                saved = time.perf_counter()

    def _measure(self, before: Moved | None, moved: Moved) -> None:
        """What a step of reading took; the first news is where it begins."""
        if self._store and before and moved.computed(before):
            self._store.computed(before.ready, moved.ready, moved.at - before.at)

    def _save_whole_chunks(self, tokens: Int32Array, reading: Reading) -> None:
        assert self._store is not None
        self.save(tokens[: len(tokens) - len(tokens) % self._store.chunk_tokens], reading)

    def save(self, tokens: Int32Array, reading: Reading) -> tuple[tuple[str, ...], bool]:
        """Store what the tiers lack: (keys of all chunks, whether the tiers have everything)."""
        if self._store is None:
            return (), False
        with self._saves:
            report = self._store.save(tokens, 0, lambda box: self._read(reading, box))
        return report.keys, report.stored

    def _read(self, reading: Reading, box: Box) -> torch.Tensor:
        """A box of a ready prefix, on the CPU."""
        return self._arena.read(clip(reading.runs, box.token_start, box.token_end), box.cell)
