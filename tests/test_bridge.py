"""Sync over async: Ctrl-C, leaving early and stopping with work under way."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from preread.bridge import LoopThread
from preread.errors import Cancelled, EngineError

FOREVER = 3600.0


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    made = LoopThread()
    yield made
    made.stop()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests were started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def _numbers(closed: list[bool], *, interrupt: bool = False) -> AsyncIterator[int]:
    try:
        yield 1
        if interrupt:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            await asyncio.sleep(FOREVER)
        yield 2
    finally:
        await asyncio.sleep(0.01)  # a clean-up that takes a few turns of the loop
        closed.append(True)


def test_a_stream_is_pulled_to_its_end(loop: LoopThread) -> None:
    closed: list[bool] = []
    assert list(loop.iterate(_numbers(closed))) == [1, 2] and closed


def test_leaving_early_closes_the_stream(loop: LoopThread) -> None:
    closed: list[bool] = []
    items = loop.iterate(_numbers(closed))
    assert next(items) == 1
    items.close()  # type: ignore[attr-defined]  # it is a generator
    assert closed


def test_ctrl_c_in_a_stream_stays_a_keyboard_interrupt(loop: LoopThread, ctrl_c: None) -> None:
    closed: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        list(loop.iterate(_numbers(closed, interrupt=True)))
    assert closed and list(loop.iterate(_numbers(closed))) == [1, 2]


def test_stopping_ends_what_others_wait_for(loop: LoopThread) -> None:
    started, ended = threading.Event(), []

    async def wait() -> None:
        started.set()
        await asyncio.sleep(FOREVER)

    def work() -> None:
        try:
            loop.run(wait())
        except Cancelled as exc:
            ended.append(str(exc))

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    loop.stop()
    thread.join()
    assert "closed" in ended[0]


def test_after_stop_nothing_runs_and_nothing_hangs(loop: LoopThread) -> None:
    closed: list[bool] = []
    items = loop.iterate(_numbers(closed))
    next(items)
    loop.stop()
    loop.stop()
    with pytest.raises(EngineError, match=r"closed.*preread\.open"):
        next(items)
    with pytest.raises(EngineError):
        loop.run(asyncio.sleep(0))


def test_ctrl_c_before_anything_is_waited_for(loop: LoopThread, ctrl_c: None) -> None:
    """The interrupt hits between handing the step over and waiting for it."""
    closed: list[bool] = []
    run = loop.run

    def interrupted(work):  # type: ignore[no-untyped-def]
        asyncio.run_coroutine_threadsafe(work, loop._loop)
        loop.run = run  # type: ignore[method-assign]
        raise KeyboardInterrupt

    async def slow() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(FOREVER)
        finally:
            closed.append(True)

    items = loop.iterate(slow())
    assert next(items) == 1
    loop.run = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        next(items)
    assert closed


async def _answer(value: int) -> int:
    await asyncio.sleep(0)
    return value


def test_other_loops_await_and_pull(loop: LoopThread) -> None:
    closed: list[bool] = []

    async def main() -> tuple[list[int], list[int]]:
        several = await asyncio.gather(*(loop.reach(_answer(i)) for i in range(3)))
        async for _ in (source := loop.pull(_numbers(closed))):
            break
        await source.aclose()
        return several, [n async for n in loop.pull(_numbers([]))]

    assert asyncio.run(main()) == ([0, 1, 2], [1, 2])
    assert closed == [True]


def test_cancelling_a_wait_cancels_the_work(loop: LoopThread) -> None:
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def main() -> None:
        task = asyncio.create_task(loop.reach(forever()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert cancelled.wait(10)


def test_stopping_tells_who_awaits(loop: LoopThread) -> None:
    async def main() -> None:
        waiting = asyncio.create_task(loop.reach(asyncio.sleep(FOREVER)))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(loop.stop)
        with pytest.raises(Cancelled):
            await waiting
        with pytest.raises(EngineError):
            await loop.reach(_answer(1))

    asyncio.run(main())
