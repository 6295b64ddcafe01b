from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Generator

import pytest

from preread.engine import uploads
from preread.store.pump import DEPTH
from preread.store.room import KEPT
from preread.store.tiers.crew import AHEAD, together
from preread.store.tiers.folder import WINDOW
from preread.store.tiers.memory import HANDS


@pytest.mark.parametrize("hands", [0, 1, 2, 5, 100])
@pytest.mark.parametrize("count", [0, 1, 4, 17, 300])
def test_is_map(hands: int, count: int) -> None:
    assert list(together(lambda n: n * n, range(count), hands)) == [n * n for n in range(count)]


def test_who_asks_works_as_well() -> None:
    """Each waits for the others: of four hands, three are helpers."""
    all_four = threading.Barrier(4)
    names = set()

    def work(n: int) -> int:
        names.add(threading.current_thread())
        return all_four.wait(60)

    assert sorted(together(work, range(4), 4)) == [0, 1, 2, 3]
    assert threading.current_thread() in names and len(names) == 4


def test_works_ahead_of_what_is_taken_as_far_as_there_is_room() -> None:
    """Nobody takes the first result, as it does not come, whoever works at it."""
    go, begun, room = threading.Event(), [], 2 * AHEAD
    count = threading.Semaphore(0)

    def work(n: int) -> int:
        begun.append(n)
        count.release()
        assert n or go.wait(60)
        return n

    got: list[int] = []
    asks = threading.Thread(target=lambda: got.extend(together(work, range(50), 2)))
    asks.start()
    for _ in range(room):
        assert count.acquire(timeout=60)
    time.sleep(0.05)  # in which nothing more must be begun
    assert sorted(begun) == list(range(room))
    go.set()
    asks.join(60)
    assert got == list(range(50)) and sorted(begun) == got


@pytest.mark.parametrize("hands", [1, 3])
def test_an_error_comes_in_its_place_and_ends_it(hands: int) -> None:
    results = together(lambda n: 10 // (n - 2), range(9), hands)
    assert [next(results), next(results)] == [-5, -10]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_closing_waits_for_nobody_and_starts_nothing_new() -> None:
    go, started, main = threading.Event(), [], threading.current_thread()

    def work(n: int) -> int:
        started.append(n)
        assert n == 0 or threading.current_thread() is main or go.wait(60)
        return n

    results = together(work, range(1000), 2)
    assert next(results) == 0
    assert isinstance(results, Generator)
    results.close()  # would never return, if it waited
    go.set()
    assert list(results) == [] and len(started) <= 2 * AHEAD + 1


def test_what_hangs_does_not_keep_the_process() -> None:
    program = """
import threading
import time
from preread.store.tiers.crew import together
main, hangs = threading.current_thread(), threading.Event()
def work(n):
    if threading.current_thread() is not main:
        if n:
            hangs.set()
            threading.Event().wait()
    elif n == 1:
        hangs.wait()
    return n
assert next(together(work, range(100), 2)) == 0
print("left", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"left\n")


def test_what_is_ahead_fits_the_memory_that_is_kept() -> None:
    """Else every value would be read to new pages, on a GPU to memory pinned anew."""
    under_way = (uploads.KEPT + 1) * uploads.EACH
    assert max(WINDOW, HANDS) * AHEAD + DEPTH + 1 + under_way <= KEPT


def test_without_helpers_who_asks_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a container may have no more threads."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert list(together(lambda n: n * n, range(40), 4)) == [n * n for n in range(40)]
