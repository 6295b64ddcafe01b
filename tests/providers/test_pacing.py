"""Nothing refused and next to nothing wasted, whatever way a provider counts, in virtual time."""

from __future__ import annotations

import random
from typing import Any

import pytest

from preread.providers.bucket import Bucket, Told
from tests.providers.clock import run_virtual
from tests.providers.crossing import World

TOKENS = {
    "by_tokens": True, "limit": 500 * 2100, "input": 2050, "most": 40, "output": 4, "slack": 1.05
}  # fmt: skip


def late(rng: random.Random) -> float:
    """A tenth of the requests arrive up to a fifth of a second later than the others."""
    return 0.01 + (min(rng.expovariate(20), 0.19) if rng.random() < 0.1 else 0.0)


def connecting(rng: random.Random) -> float:
    return rng.uniform(0.02, 0.2)


def writing(rng: random.Random) -> float:
    return rng.uniform(0.5, 5)


NETWORKS: dict[str, dict[str, Any]] = {
    "even": {},
    "late": {"there_s": late},
    "slow": {"there_s": connecting, "work_s": writing, "at_once": 256},
}


@pytest.mark.parametrize("counts", ["bucket", "sliding", "fixed"])
@pytest.mark.parametrize("what", ["requests", "tokens"])
@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("period_s", [10.0, 60.0])
def test_nothing_is_refused_and_the_limit_is_used(counts, what, network, period_s):
    given = {**NETWORKS[network], **(TOKENS if what == "tokens" else {})}
    world = World(counts=counts, period_s=period_s, **given)
    took_s = run_virtual(world.ours())
    assert world.meter.over == 0
    if network != "slow":  # there, places and the last answer take their time too
        assert world.ideal_s / took_s >= 0.95
    if counts != "bucket":
        assert world.meter.worst <= world.limit
    assert world.bucket.refills == (counts == "bucket")
    world.bucket.check()


@pytest.mark.parametrize("counts", ["bucket", "sliding", "fixed"])
@pytest.mark.parametrize("seed", range(4))
def test_also_without_headers(counts, seed):
    world = World(counts=counts, told=False, there_s=late, seed=seed)
    took_s = run_virtual(world.ours())
    assert world.meter.over == 0 and world.meter.worst <= world.limit
    assert 30 <= took_s <= 30 * 1.06  # as if it were a window


def test_a_documented_bucket_needs_no_headers():
    world = World(told=False, refills=True, rows=1000)
    assert run_virtual(world.ours()) <= 10.4 and world.meter.over == 0


def test_a_window_that_was_taken_for_a_bucket_is_found_out():
    world = World(counts="sliding", refills=True, rows=3000)
    took_s = run_virtual(world.ours())
    assert not world.bucket.refills
    assert 0 < world.meter.over < 64 * 6  # what was under way together, a few times
    assert took_s <= 1.25 * world.ideal_s


def shown(*headers: tuple[int, float]) -> bool:
    """Whether (remaining, seconds until whole) of 500 a minute show an even refill."""
    bucket = Bucket(500)
    for remaining, reset_s in headers:
        bucket.sync(Told(500, remaining, reset_s), None, 1000.0)
    return bucket.refills


def test_what_headers_show():
    assert shown((480, 2.4), (300, 24.0))  # as OpenAI's
    assert not shown((480, 2.4), (470, 3.6))  # too alike
    assert not shown((480, 40.0), (300, 38.0))  # the rest of a minute of the clock
    assert not shown((480, 2.4), (300, 2.1))  # the same at its end, where one fits by chance
    assert not shown((480, 60.0), (300, 60.0))  # a window's
    assert not shown((480, -1.0), (300, -1.0))  # not said


def test_headers_do_not_undo_smaller_pieces():
    """A provider that says how much of a minute is left, and counts in seconds."""
    bucket, now, sent = Bucket(600, refills=True), 0.0, 0
    for i in range(20):
        bucket.narrow(i, i)
    now = 100.0
    while now < 130.0 and sent < 1000:
        if wait := bucket.wait_s(1, now):
            now += wait
            continue
        spent = bucket.take(1, now)
        sent += 1
        bucket.sync(Told(600, 590, 1.0), spent, now)
        bucket.settle(spent, 1, 1, now, 0.0)
    assert 300 <= sent <= 312  # ten a second, and ten at once at first
