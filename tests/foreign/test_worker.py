"""The model's thread: turns, cancellation, the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from preread.errors import Cancelled
from preread.foreign.reader import Steps
from preread.foreign.worker import AT_ONCE, ModelThread


@pytest.fixture
def thread() -> Iterator[ModelThread]:
    made = ModelThread()
    yield made
    made.stop()


def count(name: str, n: int, log: list[str], hold: threading.Event | None = None) -> Steps[str]:
    for _ in range(n):
        if hold is not None:
            hold.wait()
        log.append(name)
        yield True
    return name


def test_work_takes_turns(thread: ModelThread):
    log: list[str] = []
    hold, gone = threading.Event(), threading.Event()
    futures = [thread.run(count(name, 3, log, hold), gone) for name in "abc"]
    hold.set()
    assert [future.result(10) for future in futures] == ["a", "b", "c"]
    assert sorted(log) == sorted("abc" * 3) and log != sorted(log)
    assert log[-3:] == ["a", "b", "c"]


def test_more_than_a_few_wait(thread: ModelThread):
    log: list[str] = []
    hold, gone = threading.Event(), threading.Event()
    names = [str(i) for i in range(AT_ONCE + 2)]
    futures = [thread.run(count(name, 2, log, hold), gone) for name in names]
    hold.set()
    for future in futures:
        future.result(10)
    assert set(log[:AT_ONCE]) == set(names[:AT_ONCE])
    assert log[-1] == names[-1]


def test_work_that_holds_nothing_lets_others_in(thread: ModelThread):
    """Large batches, row by row, however many: a question waits for a few rows at most."""
    rows, hold, gone = [0], threading.Event(), threading.Event()

    def batch() -> Steps[None]:
        for _ in range(1000):
            hold.wait()
            rows[0] += 1
            yield False

    def question() -> Steps[int]:
        yield True
        return rows[0]

    batches = [thread.run(batch(), gone) for _ in range(2 * AT_ONCE)]
    asked = thread.run(question(), gone)
    hold.set()
    assert asked.result(10) <= 3 * 2 * AT_ONCE
    for future in batches:
        future.result(10)
    assert rows == [2 * AT_ONCE * 1000]


def test_an_error_is_its_own(thread: ModelThread):
    def broken() -> Steps[None]:
        yield True
        raise ZeroDivisionError("a bug")

    log: list[str] = []
    gone = threading.Event()
    bad, good = thread.run(broken(), gone), thread.run(count("a", 3, log), gone)
    assert good.result(10) == "a"
    with pytest.raises(ZeroDivisionError):
        bad.result(10)


def test_work_that_nobody_wants_is_given_up(thread: ModelThread):
    gone, begun, closed = threading.Event(), threading.Event(), threading.Event()

    def endless() -> Steps[None]:
        try:
            while True:
                begun.set()
                yield True
        finally:
            closed.set()

    future = thread.run(endless(), gone)
    assert begun.wait(10)
    gone.set()
    with pytest.raises(Cancelled):
        future.result(10)
    assert closed.is_set()


def test_the_end_is_told_to_all():
    thread = ModelThread()
    hold, gone = threading.Event(), threading.Event()
    futures = [thread.run(count("a", 9, [], hold), gone) for _ in range(AT_ONCE + 2)]
    stopper = threading.Thread(target=thread.stop)
    stopper.start()
    hold.set()
    stopper.join(10)
    ends = [future.exception(10) for future in futures]
    assert all(isinstance(end, Cancelled) for end in ends if end is not None)
    assert isinstance(ends[-1], Cancelled)
    thread.stop()
    with pytest.raises(Cancelled):
        thread.run(count("a", 1, []), gone).result(10)
