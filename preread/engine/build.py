"""Making a prefix ready: what is in memory, then what a tier holds, then computing the rest; then
storing. Sync, on the caller's thread; only the engine thread touches the device's work."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from preread.backend import Progress
from preread.engine.arena import clip
from preread.engine.engine import Engine
from preread.engine.reading import Reading
from preread.engine.thread import EngineThread
from preread.errors import Cancelled, ContextTooLong
from preread.metrics import Metrics
from preread.store.keys import Box
from preread.store.store import Store
from preread.types import Built

if TYPE_CHECKING:
    from preread.types import Int32Array

WAIT_S = 0.02  # between two looks at what cannot wake us


@dataclass(frozen=True, slots=True)
class Ready:
    """A prefix that is in memory and held. loaded, computed: tokens that came from a tier, and
    that were computed for this call; the rest was there or is somebody else's work."""

    reading: Reading
    loaded: int
    computed: int
    load_ms: float
    seconds: float


class Builder:
    """Builds prefixes. Thread-safe; one load or save at a time (a medium is not faster for two)."""

    def __init__(
        self, thread: EngineThread, engine: Engine, store: Store | None, metrics: Metrics
    ) -> None:
        """engine: for its arena, whose held slots any thread may fill and read."""
        self._save_every_s = engine.config.save_every_s
        self._thread = thread
        self._arena = engine.arena.kv
        self._token_bytes = engine.shape.token_bytes
        self._limit = engine.decoder.max_positions
        self._store = store
        self._metrics = metrics
        self._medium = threading.Lock()

    def build(
        self, tokens: Int32Array, lease_s: float, progress: Progress | None, gone: threading.Event
    ) -> Built:
        """See Backend.build. seconds: until the prefix was ready; saving comes after. gone: set
        when nobody wants it any more. Raises ContextTooLong, OutOfMemory, EngineError."""
        ready = self.prepare(tokens, progress, gone)
        try:
            keys, stored = self.save(tokens, ready.reading)
        finally:
            self.release(ready, lease_s)
        return Built(
            tokens=len(tokens),
            reused_tokens=len(tokens) - ready.computed,
            loaded_tokens=ready.loaded,
            computed_tokens=ready.computed,
            kv_bytes=len(tokens) * self._token_bytes,
            load_ms=ready.load_ms,
            seconds=ready.seconds,
            chunk_keys=keys,
            stored=stored,
        )

    def prepare(
        self, tokens: Int32Array, progress: Progress | None, gone: threading.Event
    ) -> Ready:
        """Have the prefix in memory and hold it; the caller releases it. Raises Cancelled when
        `gone` is set before it is there."""
        if len(tokens) >= self._limit:
            raise ContextTooLong(
                f"The prefix has {len(tokens):,} tokens, the model's limit is {self._limit:,} with "
                "question and answer.",
                hint="Split the documents, or choose a model with a longer context.",
            )
        began = time.perf_counter()
        reading = self._hold(tokens, gone)
        try:
            loaded, load_ms = self._load(tokens, reading)
            computed = self._compute(tokens, reading, progress, gone)
        except BaseException:
            self._thread.send(lambda engine: engine.release(reading))
            raise
        self._metrics.add("engine.prefix_computed_tokens", computed)
        return Ready(reading, loaded, computed, load_ms, time.perf_counter() - began)

    def release(self, ready: Ready, lease_s: float) -> None:
        self._thread.send(lambda engine: engine.release(ready.reading, lease_s))

    def _hold(self, tokens: Int32Array, gone: threading.Event) -> Reading:
        """A place in memory; waits while all of it is held by others."""
        while (reading := self._thread.call(lambda engine: engine.hold(tokens))) is None:
            if gone.wait(WAIT_S):
                raise Cancelled("The build was cancelled.")
        return reading

    def _load(self, tokens: Int32Array, reading: Reading) -> tuple[int, float]:
        """Bring what a tier holds: (tokens, milliseconds)."""
        store = self._store
        if store is None or reading.cached == reading.upto:
            return 0, 0.0
        with self._medium:
            upto = store.match(tokens)
            # At once: what others compute meanwhile must not be written over.
            start = done = self._thread.call(lambda engine: engine.loading(reading, upto))
            if upto <= start:
                return 0, 0.0
            try:
                report = store.load(
                    tokens, upto, lambda box, kv: self._fill(reading, box, kv, start), start=start
                )
                done = report.tokens
            finally:
                self._thread.call(lambda engine: engine.loaded(reading, done))
        self._metrics.add("engine.prefix_loaded_tokens", done - start)
        return done - start, report.ms

    def _compute(
        self,
        tokens: Int32Array,
        reading: Reading,
        progress: Progress | None,
        gone: threading.Event,
    ) -> int:
        """Compute what is missing; returns how much of it was ours to compute. A long reading is
        saved as it goes, so that a killed build is taken up where it was."""
        saved = time.perf_counter()
        moved: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        mine = self._thread.call(
            lambda engine: engine.read(reading, lambda *state: moved.put(state))
        )
        while True:
            try:
                ready, upto = moved.get(timeout=WAIT_S)
            except queue.Empty:
                self._thread.call(lambda engine: None)  # raises when the engine is gone
                if gone.is_set():
                    raise Cancelled("The build was cancelled.") from None
                continue
            if progress is not None:
                progress(ready, upto)
            if reading.error is not None:
                raise reading.error
            if ready == upto:
                return mine
            if mine and time.perf_counter() - saved >= self._save_every_s:
                self._save_whole_chunks(tokens[:ready], reading)
                saved = time.perf_counter()

    def _save_whole_chunks(self, tokens: Int32Array, reading: Reading) -> None:
        if self._store is not None:
            self.save(tokens[: len(tokens) - len(tokens) % self._store.chunk_tokens], reading)

    def save(self, tokens: Int32Array, reading: Reading) -> tuple[tuple[str, ...], bool]:
        """Store what the tiers lack: (keys of all chunks, whether the tiers have everything)."""
        if self._store is None:
            return (), False
        with self._medium:
            report = self._store.save(tokens, 0, lambda box: self._read(reading, box))
        return report.keys, report.stored

    def _fill(self, reading: Reading, box: Box, kv: torch.Tensor, start: int) -> None:
        """Write a verified box into the arena; what was ready before stays as it is."""
        first, last = max(box.token_start, start), box.token_end
        at = first - box.token_start
        for slot, n in clip(reading.runs, first, last):
            place = self._arena[
                box.layer_start : box.layer_end, :, box.head_start : box.head_end, slot : slot + n
            ]
            place.copy_(kv[:, :, :, at : at + n])
            at += n

    def _read(self, reading: Reading, box: Box) -> torch.Tensor:
        """A box of a ready prefix, on the CPU."""
        kv = self._arena[box.layer_start : box.layer_end, :, box.head_start : box.head_end]
        runs = clip(reading.runs, box.token_start, box.token_end)
        return torch.cat([kv[:, :, :, slot : slot + n] for slot, n in runs], dim=3).cpu()
