"""A stream in a thread of its own, whatever becomes of who takes from it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from math import inf

import pytest

from preread.errors import TierError
from preread.store.pump import Pump

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
