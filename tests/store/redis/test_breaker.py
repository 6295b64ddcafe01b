from __future__ import annotations

import pytest

from preread.store.tiers.breaker import JITTER, Breaker, Circuit
from preread.testing.conformance_tier import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(cool_s=1.0, longest_s=8.0, clock=clock, draw=lambda: 0.5)


def test_a_failure_opens_it_for_a_while(breaker: Breaker, clock: Clock) -> None:
    assert breaker.admit() and breaker.circuit is Circuit.CLOSED
    assert breaker.failed("timed out") is True
    assert (breaker.circuit, breaker.cause, breaker.left()) == (Circuit.OPEN, "timed out", 1.0)
    assert not breaker.admit() and not breaker.closed()
    clock.tick(0.9)
    assert not breaker.admit()
    clock.tick(0.2)
    assert breaker.circuit is Circuit.HALF_OPEN and breaker.closed()


def test_one_tries_while_it_is_half_open(breaker: Breaker, clock: Clock) -> None:
    breaker.failed("x")
    clock.tick(1.1)
    assert [breaker.admit() for _ in range(3)] == [True, False, False]
    clock.tick(1.1)  # who tried has never come back
    assert [breaker.admit() for _ in range(2)] == [True, False]
    breaker.succeeded()
    assert breaker.circuit is Circuit.CLOSED
    assert [breaker.admit() for _ in range(3)] == [True] * 3


def test_each_failed_try_doubles_the_wait_up_to_a_limit(breaker: Breaker, clock: Clock) -> None:
    waits = []
    for n in range(30):
        assert breaker.admit()
        assert breaker.failed("x") is (n == 0)
        waits.append(breaker.left())
        clock.tick(waits[-1] + 0.01)
    assert waits[:5] == pytest.approx([1, 2, 4, 8, 8])
    assert max(waits) == pytest.approx(8)
    assert breaker.admit()
    breaker.succeeded()
    breaker.failed("x")
    assert breaker.left() == pytest.approx(1)


def test_others_that_were_under_way_do_not_lengthen_it(breaker: Breaker, clock: Clock) -> None:
    breaker.failed("first")
    clock.tick(0.5)
    assert [breaker.failed("late") for _ in range(5)] == [False] * 5
    assert breaker.left() == pytest.approx(0.5)


@pytest.mark.parametrize(("draw", "wait"), [(0.0, 1 - JITTER), (1.0, 1 + JITTER)])
def test_many_clients_do_not_come_back_at_once(clock: Clock, draw: float, wait: float) -> None:
    breaker = Breaker(cool_s=1.0, clock=clock, draw=lambda: draw)
    breaker.failed("x")
    assert breaker.left() == pytest.approx(wait)
