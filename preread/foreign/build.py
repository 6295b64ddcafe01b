"""Making a prefix ready: what is in memory, then what a tier holds, then computing the rest; then
storing. Sync, on the caller's thread; only the model's thread computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from preread.backend import Progress
from preread.errors import Cancelled, ContextTooLong, OutOfMemory
from preread.foreign.cache import KV
from preread.foreign.memory import Memory
from preread.foreign.net import Ability, Net
from preread.foreign.reader import Reader, Run, Steps
from preread.foreign.worker import ModelThread
from preread.metrics import Metrics
from preread.store.keys import Box
from preread.store.reports import brought
from preread.store.store import Store
from preread.store.upkeep import VerifyReport
from preread.types import Brought, Built

if TYPE_CHECKING:
    from preread.types import Int32Array

WAIT_S = 0.02  # between two looks at whether anybody still waits


@dataclass(frozen=True, slots=True)
class Ready:
    """A prefix that has been read. kv: None where nothing can be kept; brought: what came from
    the tiers; computed: tokens that were computed for this call."""

    kv: KV | None
    brought: Brought
    computed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Moved:
    """What has been read of a prefix by a moment of `time.perf_counter`."""

    kv: KV | None
    ready: int
    at: float = field(default_factory=time.perf_counter)


class Builder:
    """Builds prefixes, one at a time: a second would only wait for the same model. Thread-safe.
    stores: one per regime (see Net.regime), () to keep prefixes in memory only."""

    def __init__(
        self, thread: ModelThread, net: Net, reader: Reader, memory: Memory,
        stores: Sequence[Store], metrics: Metrics, save_every_s: float,
    ) -> None:  # fmt: skip
        self._thread = thread
        self._net = net
        self._reader = reader
        self._memory = memory
        self._stores = stores
        self._metrics = metrics
        self._every_s = save_every_s
        self._one = threading.Lock()

    def build(
        self, tokens: Int32Array, lease_s: float, progress: Progress | None, gone: threading.Event
    ) -> Built:
        """See Backend.build. seconds: until the prefix was ready; saving comes after. gone: set
        when nobody wants it any more. Raises ContextTooLong, OutOfMemory, Cancelled."""
        ready = self.prepare(tokens, lease_s, progress, gone)
        keys, stored = self.save(tokens, ready)
        layout = self._net.layout
        return Built(
            tokens=len(tokens),
            reused_tokens=len(tokens) - ready.computed,
            loaded_tokens=ready.brought.tokens,
            computed_tokens=ready.computed,
            kv_bytes=len(tokens) * (layout.bytes_per_token if layout else 0),
            load_ms=ready.brought.ms,
            seconds=ready.seconds,
            chunk_keys=keys,
            stored=stored,
            brought=ready.brought,
        )

    def prepare(
        self, tokens: Int32Array, lease_s: float, progress: Progress | None, gone: threading.Event
    ) -> Ready:
        """Have the prefix in memory."""
        if len(tokens) >= self._net.limit:
            raise ContextTooLong(
                f"The prefix has {len(tokens):,} tokens, the model's limit is "
                f"{self._net.limit:,} with question and answer.",
                hint="Split the documents, or choose a model with a longer context.",
            )
        if not self._memory.fits(len(tokens)):
            room = self._memory.budget / 2**20
            raise OutOfMemory(
                f"A prefix of {len(tokens):,} tokens does not fit: {room:,.0f} MiB are set aside "
                "for prefixes.",
                hint="Raise engine.prefix_memory_mb or split the context.",
            )
        began = time.perf_counter()
        with self._turn(gone):
            kv, brought = self._found(tokens, gone)
            have = kv.tokens if kv else 0
            if have < len(tokens):
                kv = self._compute(tokens, kv, lease_s, progress, gone)
            elif progress is not None:
                progress(have, have)
            if kv is not None:
                self._memory.put(tokens, self._net.regime(len(tokens)), kv, lease_s)
        computed = len(tokens) - have
        self._metrics.add("foreign.prefix_computed_tokens", computed)
        self._metrics.add("foreign.prefix_loaded_tokens", brought.tokens)
        return Ready(kv, brought, computed, time.perf_counter() - began)

    def save(self, tokens: Int32Array, ready: Ready) -> tuple[tuple[str, ...], bool]:
        """Store what the tiers lack: (keys of all chunks, whether the tiers have everything)."""
        if ready.kv is None or not self._stores:
            return (), False
        return self._save(tokens, ready.kv, self._net.regime(len(tokens)))

    def audit(self, tokens: Int32Array) -> VerifyReport | None:
        """See Store.audit; None where nothing is kept."""
        return self._stores[self._net.regime(len(tokens))].audit(tokens) if self._stores else None

    def close(self) -> None:
        for store in self._stores:
            store.close()

    @contextmanager
    def _turn(self, gone: threading.Event) -> Iterator[None]:
        while not self._one.acquire(timeout=WAIT_S):
            if gone.is_set():
                raise Cancelled("The build was cancelled.")
        try:
            yield
        finally:
            self._one.release()

    def _found(self, tokens: Int32Array, gone: threading.Event) -> tuple[KV | None, Brought]:
        """What memory and the tiers have, as far as loading is quicker than computing."""
        net, layout = self._net, self._net.layout
        if net.ability is not Ability.KEEP or layout is None:
            return None, Brought()
        regime = net.regime(len(tokens))
        kv = self._thread.run(self._known(tokens, regime), gone).result()
        have = kv.tokens if kv else 0
        if not self._stores or have == len(tokens):
            return kv, Brought()
        store = self._stores[regime]
        found = store.find(tokens)
        choice = store.choose(found, have)
        upto = choice.upto
        if upto <= have:
            return kv, brought(None, 0.0, found.chosen(choice))
        first = have - have % store.chunk_tokens  # the chunk that holds `have` comes whole
        staged = layout.stage(upto - first)

        def sink(box: Box, tensor: torch.Tensor) -> None:
            i, j, g, h = box[2:]
            staged[i:j, :, g:h, box.token_start - first : box.token_end - first] = tensor

        report = store.load(tokens, upto, sink, start=have, found=found, choice=choice)
        said = brought(report, choice.load_s)
        if report.tokens <= have:
            return kv, said
        loaded = layout.unpack(staged[:, :, :, have - first : report.tokens - first])
        loaded = loaded.to(net.device)
        return kv.then(loaded) if kv else loaded, said

    def _known(self, tokens: Int32Array, regime: int) -> Steps[KV | None]:
        """Asked in turn: a row that its reader has just ended is kept first."""
        yield from ()
        return self._memory.longest(tokens, regime)

    def _compute(
        self, tokens: Int32Array, kv: KV | None, lease_s: float, progress: Progress | None,
        gone: threading.Event,
    ) -> KV | None:  # fmt: skip
        """Read what is missing. A long reading is saved as it goes, so that a killed build is taken
        up where it was; what was read of a cancelled one stays in memory."""
        regime = self._net.regime(len(tokens))
        moved: queue.SimpleQueue[Moved | None] = queue.SimpleQueue()
        future = self._thread.run(self._steps(tokens, kv, regime, moved), gone)
        future.add_done_callback(lambda _: moved.put(None))
        saved, before = time.perf_counter(), Moved(kv, kv.tokens if kv else 0)
        try:
            while (news := moved.get()) is not None:
                kv, ready = news.kv, news.ready
                if self._stores:
                    self._stores[regime].computed(before.ready, ready, news.at - before.at)
                before = news
                if progress is not None:
                    progress(ready, len(tokens))
                if kv and ready < len(tokens) and time.perf_counter() - saved >= self._every_s:
                    self._save_whole_chunks(tokens, kv, regime)
                    saved = time.perf_counter()
            future.result()
        except BaseException:
            gone.set()  # whoever was told of the progress may have raised: then the reading ends
            if kv is not None:
                self._memory.put(tokens[: kv.tokens], regime, kv, lease_s)
            raise
        return kv

    def _steps(
        self, tokens: Int32Array, kv: KV | None, regime: int,
        moved: queue.SimpleQueue[Moved | None],
    ) -> Steps[None]:  # fmt: skip
        """On the model's thread."""
        keeps, run = self._net.ability is Ability.KEEP, Run(whole=True, reuse=False)
        if kv is not None:
            self._reader.resume(run, kv, tokens, regime)
        for _ in self._reader.read(run, tokens[len(run.tokens) :]):
            moved.put(Moved(self._reader.kept(run) if keeps else None, len(run.tokens)))
            yield True
        moved.put(Moved(self._reader.kept(run) if keeps else None, len(run.tokens)))

    def _save_whole_chunks(self, tokens: Int32Array, kv: KV, regime: int) -> None:
        if self._stores:
            whole = kv.tokens - kv.tokens % self._stores[regime].chunk_tokens
            self._save(tokens[:whole], kv, regime)

    def _save(self, tokens: Int32Array, kv: KV, regime: int) -> tuple[tuple[str, ...], bool]:
        layout = self._net.layout
        assert layout is not None
        report = self._stores[regime].save(tokens, 0, lambda box: layout.pack(kv, box))
        return report.keys, report.stored
