"""A build that is cancelled while tiers are waited for: it leaves at once, and holds nobody up."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from preread.engine.bringing import Bringer
from preread.engine.build import Builder
from preread.engine.caller import Caller
from preread.engine.engine import Engine
from preread.engine.thread import EngineThread
from preread.errors import Cancelled
from preread.metrics import Metrics
from preread.store.keys import Geometry, fingerprint
from preread.store.policy import Choice
from preread.store.rates import Rates
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Outcome, Room, fresh
from preread.store.tiers.memory import MemoryTier
from preread.types import Built
from tests.engine.helpers import Echo, small_engine

SOON_S = 20  # far less than a tier hangs
BOOK, OTHER = (np.arange(first, first + 200, dtype=np.int32) for first in (0, 1000))


class Hung(MemoryTier):
    """While told to, it gives one value of each read and then none until it is let go."""

    def __init__(self) -> None:
        super().__init__(name="hung")
        self.hangs = False
        self.waits = threading.Semaphore(0)
        self.go = threading.Event()

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        for n, outcome in enumerate(super().read(keys, room)):
            if self.hangs and n:
                self.waits.release()
                self.go.wait(600)
            yield outcome


class Builds:
    """Builds on threads of their own, of one engine on one tier that holds the book."""

    def __init__(self) -> None:
        self.tier, self.rates = Hung(), Rates()
        self.engine, self.pool = small_engine(Echo(), extents=80), ThreadPoolExecutor(8)
        self.store = self.opened()
        book = small_engine(Echo(), extents=80)
        self.start(BOOK, Caller(), engine=book).result()
        self.tier.hangs = True
        self.thread = EngineThread(self.engine)

    def opened(self, **options) -> Store:
        geometry = Geometry(1, 1, 8, "float32", 16)
        kind = fingerprint({"model": "echo"})
        return Store([self.tier], geometry, kind, rates=self.rates, always=True, **options)

    def start(self, tokens: np.ndarray, caller: Caller, engine: Engine | None = None) -> Future:
        thread = EngineThread(engine) if engine else self.thread
        builder = Builder(thread, engine or self.engine, self.store, Metrics())

        def build() -> Built:
            try:
                return builder.build(tokens, 0.0, caller)
            finally:
                if engine is not None:
                    thread.stop()

        return self.pool.submit(build)

    def idle(self) -> None:
        """Nobody holds anything of the engine."""
        self.thread.call(lambda engine: engine.check())
        assert self.thread.call(lambda engine: not engine.readings.outside and engine.idle)

    def close(self) -> None:
        self.tier.go.set()
        self.thread.stop()
        self.pool.shutdown()


@pytest.fixture
def builds() -> Iterator[Builds]:
    builds = Builds()
    yield builds
    builds.close()


def meets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every load is a meeting, whatever is foreseen."""

    def choose(self, found, start=0, *, both=False):
        return Choice(found.tokens, 1.0, 1.0, meets=start + 16, tiers=frozenset(["hung"]))

    monkeypatch.setattr(Store, "choose", choose)


@pytest.mark.parametrize("way", ["alone", "meeting"])
def test_who_waits_for_a_tier_leaves_at_once(builds, monkeypatch, way):
    if way == "meeting":
        builds.rates = Rates()  # so that the engine, too, waits for the tier: no other measurement
        builds.rates.computed(0, 16, 3600.0)
        builds.rates.computed(16, 200, 3600.0)
        builds.store = builds.opened()
        meets(monkeypatch)
    caller = Caller()
    loading = builds.start(BOOK, caller)
    assert builds.tier.waits.acquire(timeout=SOON_S)
    caller.leave()
    with pytest.raises(Cancelled):
        loading.result(SOON_S)
    assert not builds.tier.go.is_set(), "the tier hangs on"
    builds.idle()


def test_who_waits_for_anothers_load_leaves_at_once(builds, monkeypatch):
    started, turn = threading.Semaphore(0), Bringer.bring

    def bring(self, *args):
        started.release()
        return turn(self, *args)

    monkeypatch.setattr(Bringer, "bring", bring)
    builder = Builder(builds.thread, builds.engine, builds.store, Metrics())
    first, second = Caller(), Caller()
    loading = builds.pool.submit(builder.build, BOOK, 0.0, first)
    assert builds.tier.waits.acquire(timeout=SOON_S) and started.acquire(timeout=SOON_S)
    waiting = builds.pool.submit(builder.build, OTHER, 0.0, second)
    assert started.acquire(timeout=SOON_S)
    second.leave()
    with pytest.raises(Cancelled):
        waiting.result(SOON_S)
    assert not loading.done()
    first.leave()
    with pytest.raises(Cancelled):
        loading.result(SOON_S)
    assert builder.build(OTHER, 0.0, Caller()).computed_tokens == 200, "and the next has its turn"
    builds.idle()


def test_what_was_left_says_nothing_of_the_tier(builds):
    before = builds.rates.pace("hung")
    caller = Caller()
    loading = builds.start(BOOK, caller)
    assert builds.tier.waits.acquire(timeout=SOON_S)
    caller.leave()
    with pytest.raises(Cancelled):
        loading.result(SOON_S)
    assert builds.rates.pace("hung") == before


def test_who_left_before_it_was_its_turn_loads_nothing(builds):
    caller = Caller()
    caller.leave()
    with pytest.raises(Cancelled):
        builds.start(BOOK, caller).result(SOON_S)
    assert not builds.tier.waits.acquire(timeout=0)
    builds.idle()
