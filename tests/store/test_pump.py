"""A stream in a thread of its own, whatever becomes of who takes from it."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Iterator
from math import inf

import pytest

from preread.errors import TierError
from preread.store.pump import DEPTH, Pump

LONG_S = 60.0  # a test that waits so long fails


def test_the_garbage_collector_may_drop_a_pump_in_its_own_thread() -> None:
    """It runs wherever memory is asked for: also where that thread holds the lock."""
    go, threads = threading.Event(), []

    def things() -> Iterator[int]:
        threads.append(threading.current_thread())
        assert go.wait(LONG_S)
        yield 1

    def light(thing: int) -> bool:
        gc.collect()
        return True

    pump = Pump(things(), light)
    pump.itself = pump  # type: ignore[attr-defined]  # as an exception's traceback holds it
    gone = weakref.ref(pump)
    was = gc.isenabled()
    gc.disable()
    try:
        del pump
        assert gone() is not None, "nothing else drops it"
        go.set()
        threads[0].join(LONG_S / 6)
    finally:
        if was:
            gc.enable()
    assert gone() is None and not threads[0].is_alive()


def test_a_pump_without_a_thread_is_a_tier_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a container may have no more threads."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pump = Pump(iter([1]))
    with pytest.raises(TierError, match="can't start new thread"):
        pump.take(inf)


@pytest.mark.parametrize("seed", range(6))
def test_all_come_in_order_and_few_hold_memory(seed: int) -> None:
    """Also the last ones, for which nobody is woken."""
    draw = random.Random(seed)
    heavy = [draw.random() < seed / 5 for _ in range(400)]
    made = taken = most = 0

    def things() -> Iterator[int]:
        nonlocal made, most
        for n in range(len(heavy)):
            made += heavy[n]
            most = max(most, made - taken)
            yield n

    pump = Pump(things(), lambda n: not heavy[n])
    for n in range(len(heavy)):
        assert pump.take(time.perf_counter() + LONG_S) == n
        taken += heavy[n]
    with pytest.raises(StopIteration):
        pump.take(inf)
    assert most <= DEPTH + 2, "one is made, one was taken and is not counted yet"


def test_a_full_pump_goes_on_when_there_is_room() -> None:
    full, made = threading.Event(), 0

    def things() -> Iterator[int]:
        nonlocal made
        for made in range(1, 4 * DEPTH):
            if made == DEPTH + 1:
                full.set()
            yield made

    pump = Pump(things())
    assert full.wait(LONG_S)
    time.sleep(0.02)
    assert made == DEPTH + 1, "one that waits for room"
    assert [pump.take(inf) for _ in range(1, 4 * DEPTH)] == list(range(1, 4 * DEPTH))


def test_one_thing_alone_reaches_who_waits_for_it() -> None:
    """While the next one hangs."""
    hangs = threading.Event()

    def things() -> Iterator[int]:
        yield 1
        hangs.wait(LONG_S)

    pump = Pump(things())
    assert pump.take(time.perf_counter() + LONG_S) == 1
    pump.close()
    hangs.set()
