from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from preread.store.tiers.ahead import ahead


@pytest.mark.parametrize("window", [0, 1, 2, 5, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 17])
def test_is_map(window: int, count: int) -> None:
    results = ahead(lambda n: n * n, range(count), window)
    assert list(results) == [n * n for n in range(count)]


def test_works_ahead_of_what_is_taken_but_no_further_than_its_window() -> None:
    started: list[int] = []
    enough = threading.Semaphore(0)

    def work(n: int) -> int:
        started.append(n)
        enough.release()
        return n

    results = ahead(work, range(100), 3)
    assert next(results) == 0
    for _ in range(4):  # the one taken, and three more without being asked
        assert enough.acquire(timeout=60)
    assert sorted(started) == [0, 1, 2, 3]
    assert list(results) == list(range(1, 100))


def test_several_at_once() -> None:
    """Each waits for the others: in a row none would ever end."""
    together = threading.Barrier(4)
    assert sorted(ahead(lambda n: together.wait(60), range(4), 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("window", [1, 3])
def test_an_error_comes_in_its_place_and_ends_it(window: int) -> None:
    results = ahead(lambda n: 10 // (n - 2), range(9), window)
    assert [next(results), next(results)] == [-5, -10]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_closing_waits_for_nobody_and_starts_nothing_new() -> None:
    go, started = threading.Event(), []

    def work(n: int) -> int:
        started.append(n)
        assert n == 0 or go.wait(60)
        return n

    results = ahead(work, range(50), 2)
    assert next(results) == 0
    assert isinstance(results, Generator)
    results.close()  # would never return, if it waited
    go.set()
    assert list(results) == [] and len(started) <= 3
