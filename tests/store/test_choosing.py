"""Load or recompute in a store: what it learns, what it chooses, and whom it stops waiting for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from preread.store.chunk import ChunkHeader
from preread.store.keys import Box
from preread.store.loading import STALE_S
from preread.store.policy import LEAST_S, Choice
from preread.store.pump import DEPTH, Pump
from preread.store.rates import Rates
from preread.store.reading import Reading, Taken
from preread.store.reports import End, Miss
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Outcome, Room, Tier, fresh
from preread.store.tiers.memory import MemoryTier
from preread.testing.conformance_tier import Clock
from preread.testing.faulty import FaultyTier, Trouble, at
from preread.types import Brought, Served
from tests.attacks.tools import FINGERPRINT, Den

TOKENS = Den.tokens


class Hung(MemoryTier):
    """Gives so many values and then none until it is let go."""

    def __init__(self, values: int) -> None:
        super().__init__(name="hung")
        self.values = values
        self.go = threading.Event()

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        for n, outcome in enumerate(super().read(keys, room)):
            if n >= self.values:
                self.go.wait(60)
            yield outcome


@pytest.fixture
def den(tmp_path: Path) -> Den:
    return Den(tmp_path / "kv")


def opened(den: Den, tiers: Sequence[Tier], rates: Rates) -> Store:
    store = Store(tiers, den.truth.geometry, FINGERPRINT, metrics=den.metrics, rates=rates)
    store.save(TOKENS, 0, den.truth.source)
    return store


def slow(rates: Rates, token_s: float) -> None:
    """Computing takes so long a token."""
    for end in (8, 16, 29):
        rates.computed(0, end, end * token_s)


def test_nothing_known_loads_everything_and_is_learnt_from(den: Den) -> None:
    rates = Rates()
    store = opened(den, [den.disk], rates)
    found = store.find(TOKENS)
    choice = store.choose(found)
    assert (choice.upto, choice.tried) == (29, {"disk"})
    report = store.load(TOKENS, 29, den.truth.sink, found=found, choice=choice)
    assert (report.tokens, report.end) == (29, None)
    pace = rates.pace("disk")
    assert pace is not None
    # The fit is within the load's own two points: its first chunk, and all of it.
    assert 0 < pace.seconds(report.nbytes, 1) < 1.5 * report.ms / 1e3
    store.computed(0, 29, 2.9)
    choice = store.choose(found)
    assert choice.upto == 29 and choice.compute_s == pytest.approx(2.9)


def test_a_machine_that_has_only_ever_loaded_loads_all_of_it(den: Den) -> None:
    """What computing would take is not known there, however well the tier is: the second load of
    such a home used to end with its first span."""
    rates = Rates()
    store = opened(den, [den.disk], rates)
    for _ in range(3):
        choice = store.choose(store.find(TOKENS), both=True)
        assert (choice.upto, choice.meets) == (29, None)
        report = store.load(TOKENS, 29, den.truth.sink, choice=choice)
        assert (report.tokens, report.end) == (29, None)
    assert rates.pace("disk") is not None and rates.prefill() is None


def test_what_is_quicker_computed_is_not_loaded(den: Den) -> None:
    rates = Rates()
    store = opened(den, [den.disk], rates)
    for nbytes in (1000, 100_000):
        rates.loaded("disk", nbytes, 1, nbytes * 1e-3)  # a byte a millisecond
    slow(rates, 1e-4)
    found = store.find(TOKENS)
    choice = store.choose(found)
    assert choice.upto == 0 and found.chosen(choice) == End(Miss.TOO_SLOW, 0)
    assert den.metrics.snapshot()["store.miss.too_slow"] == 1


def test_a_quick_tier_is_loaded_up_to_where_a_slow_one_begins(den: Den) -> None:
    rates = Rates()
    near, far = MemoryTier(name="near"), MemoryTier(name="far")
    store = opened(den, [near, far], rates)
    near.remove([ChunkKey(bytes.fromhex(key)) for key in den.keys[4:]])
    for tier, byte_s in (("near", 1e-9), ("far", 1.0)):
        for nbytes in (1000, 100_000):
            rates.loaded(tier, nbytes, 1, nbytes * byte_s)
    slow(rates, 1e-3)
    found = store.find(TOKENS)
    choice = store.choose(found)
    assert choice.upto == 16
    report = store.load(TOKENS, choice.upto, den.truth.sink, found=found, choice=choice)
    assert (report.tokens, report.end) == (16, End(Miss.TOO_SLOW, 16))
    assert [row.tier for row in report.served] == ["near"]


def test_a_tier_too_slow_long_ago_is_tried_again(den: Den) -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    store = opened(den, [den.disk], rates)
    for _ in range(3):
        rates.loaded("disk", 1000, 1, 10.0)
    slow(rates, 1e-2)
    found = store.find(TOKENS)
    clock.tick(STALE_S - 1)
    assert store.choose(found).upto == 0
    clock.tick(2)
    choice = store.choose(found)
    assert (choice.upto, choice.tried) == (29, {"disk"})
    store.load(TOKENS, 29, den.truth.sink, found=found, choice=choice)
    assert rates.age_s("disk") == 0  # and now it is known again


@pytest.mark.parametrize("values", [0, 1, 5])
def test_a_tier_that_hangs_is_not_waited_for_longer_than_computing_takes(
    den: Den, values: int
) -> None:
    hung, rates = Hung(values), Rates()
    store = opened(den, [hung], rates)
    slow(rates, 0.01)
    found = store.find(TOKENS)
    choice = store.choose(found)
    assert choice.upto == 29 and choice.compute_s == pytest.approx(0.29)
    try:
        report = store.load(TOKENS, 29, den.truth.sink, found=found, choice=choice)
    finally:
        hung.go.set()
    done = values // 2 * 8
    assert (report.tokens, report.end) == (done, End(Miss.TOO_SLOW, done))
    assert report.ms >= 290
    pace = rates.pace("hung")  # and it is known to be slow
    assert pace is not None and pace.seconds(1, 1) + pace.seconds(report.nbytes, 1) > 0.2
    assert den.metrics.snapshot()["store.miss.too_slow"] == 1


class Front:
    """Computes nothing and stops the load when it has waited for a moment."""

    def listen(self, stop: Callable[[], None]) -> None:
        threading.Timer(0.1, stop).start()

    def begin(self, start: int, end: int) -> bool:
        return True

    def fill(self, box: Box, kv: torch.Tensor) -> None:
        pass

    def end(self, start: int, end: int, *, whole: bool) -> int:
        return end - start if whole else 0


def test_who_stops_a_load_does_not_wait_for_a_tier_behind_the_one_that_failed(den: Den) -> None:
    """A bad chunk is asked of the next tier, which hangs, and nothing has a deadline."""
    near = FaultyTier(MemoryTier(name="near"), at({("read", 1): Trouble.FLIP}))
    far = Hung(0)
    store = opened(den, [near, far], Rates())
    choice = Choice(29, 1.0, 1.0, meets=8, tiers=frozenset({"near"}))
    report = store.meet(store.find(TOKENS), 0, choice, Front())
    far.go.set()
    assert report.faults and report.loaded == 0


def test_a_tier_that_proves_slow_is_given_up(den: Den) -> None:
    """A span takes 120 ms, computing it 40: the first is enough to see that."""

    class Slow(MemoryTier):
        def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
            for outcome in super().read(keys, room):
                time.sleep(0.06)
                yield outcome

    rates = Rates()
    store = opened(den, [Slow(name="slow")], rates)
    slow(rates, 0.005)
    found = store.find(TOKENS)
    report = store.load(TOKENS, 29, den.truth.sink, found=found, choice=store.choose(found))
    assert report.end == End(Miss.TOO_SLOW, report.tokens) and report.tokens < 29
    assert store.choose(found).upto == 0


def test_a_load_that_is_whole_was_not_too_slow(den: Den) -> None:
    """However long the last of it took: nothing is left that could be computed sooner."""
    rates = Rates()
    store = opened(den, [MemoryTier()], rates)
    slow(rates, 1e-4)  # all of it is computed sooner than a load is given
    found = store.find(TOKENS)

    def sink(box: Box, kv: torch.Tensor) -> None:
        if box.token_end == len(TOKENS):
            time.sleep(2 * LEAST_S)

    report = store.load(TOKENS, 29, sink, found=found, choice=Choice(29, 0.0, 1.0))
    assert (report.tokens, report.end) == (29, None)


def test_what_was_stopped_says_nothing_of_the_tier(den: Den) -> None:
    """An engine that closes ends loads; nobody knows how long they would have taken."""
    tier, rates = Hung(0), Rates()
    store = opened(den, [tier], rates)
    report = store.load(TOKENS, 29, den.truth.sink, listen=lambda stop: stop())
    tier.go.set()
    assert report.tokens == 0 and report.end == End(Miss.TOO_SLOW, 0)
    assert rates.pace("hung") is None


def test_what_was_measured_is_kept_when_it_closes(den: Den) -> None:
    kept: dict[str, list[list[float]]] = {}

    class Notes:
        def get(self, key: str) -> list[list[float]]:
            return kept.get(key, [])

        def keep(self, key: str, rows: list[list[float]]) -> None:
            kept[key] = rows

    store = opened(den, [den.disk], Rates(Notes()))
    store.load(TOKENS, 29, den.truth.sink)
    store.computed(0, 29, 1.0)
    store.close()
    assert set(kept) == {"tier/disk", "prefill"}


# --- the pump ---


def soon() -> float:
    return time.perf_counter() + 60


def test_a_pump_gives_what_the_iterator_gives_and_raises_what_it_raises() -> None:
    def things() -> Iterator[int]:
        yield from range(5)
        raise KeyError("x")

    pump = Pump(things())
    assert [pump.take(soon()) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError):
        pump.take(soon())
    with pytest.raises(StopIteration):
        Pump(iter(())).take(soon())


def test_a_pump_runs_ahead_a_little_and_is_closed_by_its_own_thread() -> None:
    taken: list[int] = []
    closed = threading.Event()

    def things() -> Iterator[int]:
        try:
            for n in range(100):
                taken.append(n)
                yield n
        finally:
            closed.set()

    pump = Pump(things())
    assert pump.take(soon()) == 0
    pump.close()
    assert closed.wait(60) and len(taken) <= DEPTH + 2


def test_a_pump_does_not_wait_for_ever() -> None:
    go = threading.Event()

    def things() -> Iterator[int]:
        go.wait(60)
        yield 1

    pump = Pump(things())
    with pytest.raises(TimeoutError):
        pump.take(time.perf_counter())
    go.set()
    assert pump.take(soon()) == 1


def test_a_value_that_comes_too_late_is_not_taken_for_the_next_one(
    den: Den, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad chunk first: then the rest is read as well, to find all that is bad."""
    tier, rates = Hung(2), Rates()
    store = opened(den, [tier], rates)
    slow(rates, 0.2 / 29)
    (damaged,) = tier.read([ChunkKey(bytes.fromhex(den.keys[0]))])
    assert isinstance(damaged, memoryview)
    damaged[300] ^= 1
    tier.write(ChunkKey(bytes.fromhex(den.keys[0])), [damaged])
    found = store.find(TOKENS)
    take = Reading.take

    def late(self: Reading, n: int, chunk: ChunkHeader) -> Taken | Miss:
        if n == 4:  # the value that was waited for comes before the next is asked for
            tier.go.set()
            time.sleep(0.5)
        return take(self, n, chunk)

    monkeypatch.setattr(Reading, "take", late)
    report = store.load(TOKENS, 29, den.truth.sink, found=found, choice=store.choose(found))
    assert [key for _, key in report.faults] == [den.keys[0]]
    assert tier.find([ChunkKey(bytes.fromhex(key)) for key in den.keys]) == [False, *[True] * 7]


# --- what a build says of it ---


def test_what_came_for_several_prefixes_is_one_report() -> None:
    one = Brought(8, 2.0, 1.0, (Served("disk", 2, 8, 100, 2.0),))
    two = Brought(16, 5.0, 4.0, (Served("disk", 1, 4, 50, 1.0), Served("far", 3, 12, 150, 4.0)))
    short = Brought(0, 0.0, 0.0, (), "gone", 24)
    both = one.plus(short).plus(two)
    disk, far = Served("disk", 3, 12, 150, 3.0), Served("far", 3, 12, 150, 4.0)
    assert both == Brought(24, 7.0, 5.0, (disk, far), "gone", 24)
    assert Brought().plus(one) == one
    said = both.to_json()
    assert said["tiers"][1] == {
        "tier": "far", "chunks": 3, "tokens": 12, "nbytes": 150, "ms": 4.0
    }  # fmt: skip
    assert (said["miss"], said["at"], said["predicted_ms"]) == ("gone", 24, 5.0)
