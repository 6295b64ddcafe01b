"""Builds that wait: woken by what they wait for, and by nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from preread.engine.build import Builder
from preread.engine.caller import Caller
from preread.engine.engine import Engine
from preread.engine.thread import EngineThread
from preread.errors import Cancelled, EngineError
from preread.metrics import Metrics
from preread.types import Built
from tests.engine.helpers import Echo, Gated, small_engine

HOT, BIG = (np.arange(first, first + n, dtype=np.int32) for first, n in ((0, 200), (1000, 250)))


class Watched(Caller):
    """waits: released each time that the build waits for news."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Semaphore(0)

    def wait(self, reading):
        self.waits.release()
        return super().wait(reading)


class Builds:
    """Builds on threads of their own. sent: how often anything was sent to the engine thread."""

    def __init__(self, decoder: Gated) -> None:
        self.engine: Engine = small_engine(decoder, extents=20)
        self.thread = EngineThread(self.engine)
        self.sent = 0
        self.pool = ThreadPoolExecutor(8)
        send = self.thread.send

        def count(work):
            self.sent += 1
            return send(work)

        self.thread.send = count  # type: ignore[method-assign]
        self.builder = Builder(self.thread, self.engine, None, Metrics())

    def start(self, tokens: np.ndarray, caller: Caller) -> Future[Built]:
        return self.pool.submit(self.builder.build, tokens, 0.0, caller)

    def close(self) -> None:
        self.thread.stop()
        self.pool.shutdown()


@pytest.fixture
def gate() -> Gated:
    return Gated(Echo())


@pytest.fixture
def builds(gate: Gated) -> Iterator[Builds]:
    builds = Builds(gate)
    yield builds
    gate.open()
    builds.close()


def test_a_build_that_waits_for_memory_is_woken_when_it_is_free(builds, gate):
    gate.open()
    held = builds.thread.call(lambda engine: engine.hold(HOT))
    caller = Watched()
    waiting = builds.start(BIG, caller)
    caller.waits.acquire()
    before = builds.sent
    for _ in range(50):  # the engine thread is awake again and again
        builds.thread.call(lambda engine: None)
    assert builds.sent == before + 50 and not waiting.done(), "it asks for nothing while it waits"
    builds.thread.call(lambda engine: engine.release(held))
    built = waiting.result()
    assert (built.tokens, built.computed_tokens) == (250, 250)


def test_a_build_that_waits_for_memory_can_be_cancelled(builds, gate):
    gate.open()
    held = builds.thread.call(lambda engine: engine.hold(HOT))
    caller = Watched()
    waiting = builds.start(BIG, caller)
    caller.waits.acquire()
    caller.leave()
    with pytest.raises(Cancelled):
        waiting.result()
    builds.thread.call(lambda engine: engine.release(held))
    assert builds.thread.call(lambda engine: engine.idle)


def test_a_build_can_be_cancelled_while_it_is_computed(builds, gate):
    caller = Watched()
    building = builds.start(BIG, caller)
    gate.held.acquire()  # the first step
    caller.leave()
    with pytest.raises(Cancelled):
        building.result()
    gate.open()
    again = builds.start(BIG, Caller()).result()
    assert again.reused_tokens + again.computed_tokens == 250 and again.reused_tokens > 0


@pytest.mark.parametrize("state", ["in line", "computing"])
def test_closing_the_engine_wakes_who_waits(builds, gate, state):
    caller = Watched()
    if state == "in line":
        builds.thread.call(lambda engine: engine.hold(HOT))
    waiting = builds.start(BIG, caller)
    (caller.waits if state == "in line" else gate.held).acquire()
    builds.thread._stopping = True  # seen after the step at the gate, one of six
    gate.open()
    builds.thread.stop()
    with pytest.raises(Cancelled, match="closed"):
        waiting.result()


def test_a_bug_in_the_engine_wakes_who_waits(builds, gate):
    waiting = builds.start(BIG, Caller())
    gate.held.acquire()

    def broken():
        raise ZeroDivisionError("a bug")

    builds.engine._scheduler.schedule = broken  # type: ignore[method-assign]
    gate.open()
    with pytest.raises(EngineError, match="a bug"):
        waiting.result()


class Inbox:
    """A queue that notes how it is waited for."""

    def __init__(self, queue) -> None:
        self.put, self.get_nowait, self._get = queue.put, queue.get_nowait, queue.get
        self.waits: list[object] = []

    def get(self, **options: object):
        self.waits.append(options)
        return self._get(**options)


def test_a_stalled_engine_sleeps_until_there_is_mail(builds, gate):
    """Work waits for memory that only somebody outside can free."""
    gate.open()
    inbox = builds.thread._inbox = Inbox(builds.thread._inbox)
    held = builds.thread.call(lambda engine: engine.hold(HOT))
    waiting = builds.start(BIG, Caller())
    while not builds.thread.call(lambda engine: engine.stalled):
        pass
    builds.thread.call(lambda engine: None)
    assert inbox.waits and not any(inbox.waits), "without a timeout"
    builds.thread.call(lambda engine: engine.release(held))
    assert waiting.result().tokens == 250


def test_builds_at_once_are_charged_once_whoever_gives_up(builds, gate):
    callers = [Watched() for _ in range(3)]
    running = [builds.start(BIG, callers[0])]
    gate.held.acquire()
    for caller in callers[1:]:
        running.append(builds.start(BIG, caller))
    for _ in range(2):
        gate.let.release()
        gate.held.acquire()
    for caller in callers[1:]:
        caller.waits.acquire()  # its hold is mail that the step was followed by
    callers[0].leave()
    with pytest.raises(Cancelled):
        running[0].result()
    gate.open()
    rest = [future.result() for future in running[1:]]
    assert sum(b.computed_tokens for b in rest) + min(b.reused_tokens for b in rest) == 250
