"""What tiers hold of a prefix comes into memory: alone, from its beginning on; or from its end,
while the engine computes from its front. On the caller's thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from preread.engine.arena import Arena, clip
from preread.engine.caller import Caller
from preread.engine.engine import Engine
from preread.engine.layers import Layers, Tail
from preread.engine.meeting import Meeting
from preread.engine.reading import Reading
from preread.engine.slots import Slots
from preread.engine.thread import EngineThread
from preread.engine.uploads import Uploads
from preread.metrics import Metrics
from preread.store.keys import Box
from preread.store.loading import Found
from preread.store.policy import Choice
from preread.store.reports import LoadReport, brought
from preread.store.store import Store
from preread.types import Brought

if TYPE_CHECKING:
    from preread.types import Int32Array


LOOK_S = 0.05  # between two looks at whether who waits for its turn is still wanted


class Bringer:
    """Loads from one store into one arena, one prefix at a time: a medium is not faster for two.
    Thread-safe."""

    def __init__(
        self, thread: EngineThread, arena: Arena, uploads: Uploads, store: Store, metrics: Metrics
    ) -> None:
        self._thread = thread
        self._arena = arena
        self._uploads = uploads
        self._store = store
        self._metrics = metrics
        self._one = threading.Lock()

    def bring(
        self, tokens: Int32Array, reading: Reading, caller: Caller, tail: Tail | None = None
    ) -> Brought:
        """Bring what a tier holds, as far as that is quicker than computing it. tail: what is asked
        behind it; computed meanwhile where that pays and nobody else wants the engine. Raises what
        the engine raises, and Cancelled when the caller has left."""
        if reading.cached == reading.upto:
            return Brought()
        with self._turn(reading, caller):
            found = self._store.find(tokens)
            caller.check(reading)
            choice = self._store.choose(found, reading.cached, both=True)
            if choice.meets is not None:
                came = self._meet(reading, caller, found, choice)
            else:
                streams = tail is not None and self._store.by_layer(found, choice, tail.tokens)
                came = self._load(reading, caller, found, choice, tail if streams else None)
        self._metrics.add("engine.prefix_loaded_tokens", came.tokens)
        return came

    @contextlib.contextmanager
    def _turn(self, reading: Reading, caller: Caller) -> Iterator[None]:
        """Alone; who is not wanted any more while another loads leaves at once."""
        while not self._one.acquire(timeout=LOOK_S):
            caller.check(reading)
        try:
            yield
        finally:
            caller.listen(None)
            self._one.release()

    def _load(
        self, reading: Reading, caller: Caller, found: Found, choice: Choice, tail: Tail | None
    ) -> Brought:
        """Alone: nobody computes any of it meanwhile."""
        upto = choice.upto
        # At once: what others compute meanwhile must not be written over.
        start = done = self._thread.call(lambda engine: engine.loading(reading, upto))
        if upto <= start:
            return brought(None, 0.0, found.chosen(choice))
        report: LoadReport | None = None
        self._uploads.begin()
        streamed = self._streamed(reading, tail)

        def sink(box: Box, kv: torch.Tensor) -> None:
            self._write(reading, max(box.token_start, start), box, kv)
            self._uploads.ease()

        try:
            report = self._store.load(
                reading.tokens, upto, sink, start=start, found=found, choice=choice,
                place=lambda box: self._place(reading, box, start),
                came=partial(caller.check, reading), listen=caller.listen,
                layers=streamed.came if streamed else None,
            )  # fmt: skip
        finally:
            try:
                self._uploads.settle()  # nobody may compute where something is still written
                asked = streamed is not None and streamed.end()
                if report is not None:
                    done = report.tokens  # not before: a copy may have failed
            finally:
                self._thread.call(lambda engine: engine.loaded(reading, done))
        return brought(report, choice.load_s)._replace(by_layer=asked)

    def _streamed(self, reading: Reading, tail: Tail | None) -> Streamed | None:
        """How a load by layer is told of, where nobody else wants the engine."""
        if tail is None or not self._thread.call(lambda engine: engine.alone):
            return None
        layers = Layers(self._arena.shape.layers)
        return Streamed(self._thread, self._uploads, reading, tail, layers)

    def _meet(self, reading: Reading, caller: Caller, found: Found, choice: Choice) -> Brought:
        """Both at once."""
        prefill, tiers = self._store.beside(choice.tiers), choice.tiers
        assert choice.meets is not None and prefill is not None
        meeting = Meeting(
            choice.upto,
            self._store.chunk_tokens,
            choice.load_s / (choice.upto - choice.meets),
            prefill.seconds,
            partial(self._write, reading),
            self._uploads,
            partial(_wake, self._thread),
            lambda: not caller.left,
        )
        caller.listen(meeting.quit)
        caller.news(reading)
        start = self._thread.call(lambda engine: engine.readings.meet(reading, meeting))
        if choice.upto <= start:
            return brought(None, 0.0, found.chosen(choice))
        self._uploads.begin()
        try:
            report = self._store.meet(found, start, choice, meeting)
        finally:
            try:
                self._uploads.settle()
            finally:
                self._thread.call(lambda engine: engine.readings.met(reading))
        self._measure(reading, caller, tiers)
        return brought(report, choice.load_s, computed=meeting.computed)

    def _measure(self, reading: Reading, caller: Caller, tiers: frozenset[str]) -> None:
        """What computing took beside the load."""
        for before, moved in pairwise(caller.news(reading)):
            if moved.computed(before):
                seconds = moved.at - before.at
                self._store.computed(before.ready, moved.ready, seconds, beside=tiers)

    def _place(self, reading: Reading, box: Box, start: int) -> Slots | None:
        """Where a box may be written before it is verified: not where somebody reads already. Any
        thread, during a load alone of tokens from `start` on: nobody else reads or writes these."""
        if box.token_start < start:
            return None
        return self._arena.slots(clip(reading.runs, box.token_start, box.token_end), box.cell)

    def _write(self, reading: Reading, first: int, box: Box, kv: torch.Tensor) -> None:
        """Tokens of a verified box, from `first` on, into the arena: what was ready before stays as
        it is."""
        runs, wait = clip(reading.runs, first, box.token_end), self._uploads.waits
        some = kv if first == box.token_start else kv[:, :, :, first - box.token_start :]
        self._uploads.copy(lambda: self._arena.write(runs, some, box.cell, wait=wait), kv)


class Streamed:
    """A load by layer and the step that follows it, begun with the first layers. The loading thread
    calls these."""

    def __init__(
        self, thread: EngineThread, uploads: Uploads, reading: Reading, tail: Tail, layers: Layers
    ) -> None:
        self._thread = thread
        self._uploads = uploads
        self._reading = reading
        self._tail = tail
        self._layers = layers
        self._step: Future[bool] | None = None

    def came(self, layers: int) -> None:
        """So many leading layers are verified, and in place."""
        self._layers.arrived(layers, self._uploads.behind())
        if self._step is None:
            self._step = self._thread.stream(self._layers, self._run)

    def end(self) -> bool:
        """Nothing more comes. Whether the step was computed; else nothing of it is left."""
        self._layers.quit()  # first: the engine may be waiting
        return self._step is not None and self._step.result()

    def _run(self, engine: Engine) -> bool:
        return self._tail.run(engine, self._reading, self._layers)


def _wake(thread: EngineThread) -> None:
    """The next step fetches what has come; the engine may be waiting for it."""
    thread.send(_fetch)


def _fetch(engine: Engine) -> None:
    engine.readings.fetch()
