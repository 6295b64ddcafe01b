"""Never over a limit in any window, and hardly ever under it."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.errors import RequestError
from preread.providers.bucket import Bucket, Told
from preread.providers.lanes import Cost, Lane, Limits, amounts
from preread.providers.limits import Limiter
from preread.testing.simulation.rates import Meter
from tests.providers.clock import LoopClock, TurnedClock, run_virtual

NAMES = ("requests", "tokens", "input_tokens", "output_tokens")


def limiter_of(*limits: Limits) -> tuple[Limiter, TurnedClock]:
    clock = TurnedClock()
    lanes = [Lane(f"org{i}", (f"sk-{i}-a", f"sk-{i}-b"), given) for i, given in enumerate(limits)]
    return Limiter(lanes, clock), clock


def worst(events: list[tuple[float, int]], period_s: float) -> int:
    """The most that happened in any window of a period: the slow twin of the record."""
    return max(
        (sum(n for at, n in events if start <= at < start + period_s) for start, _ in events),
        default=0,
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(200, 3000),
    st.lists(st.tuples(st.integers(1, 150), st.integers(1, 50), st.floats(0, 1)), max_size=120),
    st.sampled_from([1.0, 0.5, 1 / 60]),
)
def test_no_window_holds_more_than_the_limit(rpm, tpm, requests, burst):
    async def run():
        limiter, clock = limiter_of(Limits(rpm, tpm, tpm, tpm, burst=burst))
        sent: list[tuple[float, Cost]] = []
        for prompt, output, share in requests:
            ticket = await limiter.reserve(Cost(prompt, output))
            actual = Cost(prompt, int(output * share))
            sent.append((clock.now(), actual))
            limiter.settle(ticket, actual)
            for bucket in ticket.lane.buckets.values():
                bucket.check()
        for name, limit in zip(NAMES, (rpm, tpm, tpm, tpm), strict=True):
            assert worst([(at, amounts(cost)[name]) for at, cost in sent], 60.0) <= limit

    asyncio.run(run())


@settings(max_examples=30, deadline=None)
@given(st.integers(500, 3000), st.lists(st.floats(0.3, 1), min_size=50, max_size=200), st.data())
def test_nor_when_answers_come_late(tpm, shares, data):
    """Up to eight are under way; what is given back then may be taken again within the window."""

    async def run():
        limiter, clock = limiter_of(Limits(tokens=tpm))
        sent: list[tuple[float, int]] = []
        waiting = []
        for share in shares:
            ticket = await limiter.reserve(Cost(100, 5))
            actual = Cost(int(100 * share), 1)
            sent.append((clock.now(), sum(actual)))
            waiting.append((ticket, actual))
            clock.time += data.draw(st.sampled_from([0.0, 0.001, 0.1, 3.0]))
            if len(waiting) > 8:
                limiter.settle(*waiting.pop(data.draw(st.integers(0, 7))))
        assert worst(sent, 60.0) <= tpm

    asyncio.run(run())


@settings(max_examples=15, deadline=None)
@given(st.integers(60, 300), st.sampled_from(NAMES), st.sampled_from([1.0, 1 / 12, 1 / 60]))
def test_almost_all_of_a_limit_is_used(limit, which, burst):
    """Of the limit that binds, over ten periods of more work than it allows."""

    async def run():
        given_ = dict.fromkeys(NAMES, 0) | {which: limit}
        limiter, clock = limiter_of(Limits(**given_, burst=burst))
        began, used = clock.now(), 0
        while clock.now() < began + 600:
            ticket = await limiter.reserve(Cost(1, 1))
            used += amounts(ticket.cost)[which]
        assert used >= 0.95 * limit * 10
        return used

    assert asyncio.run(run())


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 60), st.lists(st.integers(1, 5), min_size=50, max_size=200))
def test_a_provider_with_the_same_bucket_refuses_nothing(limit, costs):
    async def run():
        limiter, clock = limiter_of(Limits(tokens=limit))
        meter = Meter(limit, 60.0)
        for cost in costs:
            await limiter.reserve(Cost(cost, 0))
            assert meter.room(cost, clock.now()) <= 1e-6
            meter.take(cost, clock.now())
        assert meter.worst <= limit

    asyncio.run(run())


async def test_what_is_not_used_is_given_back():
    limiter, clock = limiter_of(Limits(tokens=1000))
    began = clock.now()
    for _ in range(100):
        limiter.settle(await limiter.reserve(Cost(10, 300)), Cost(5, 1))
    assert clock.now() == began  # 600 tokens used, 31,000 reserved: nobody waited


async def test_what_was_used_beyond_it_is_taken():
    limiter, clock = limiter_of(Limits(tokens=1000))
    limiter.settle(await limiter.reserve(Cost(10, 0)), Cost(990, 0))
    began = clock.now()
    await limiter.reserve(Cost(100, 0))
    assert clock.now() > began


async def test_a_request_larger_than_any_limit_is_refused_at_once():
    limiter, _ = limiter_of(Limits(tokens=1000))
    with pytest.raises(RequestError, match="1,500 tokens is more than the limit of 1,000"):
        await limiter.reserve(Cost(1000, 500))


async def test_only_the_refused_organisation_waits():
    limiter, clock = limiter_of(Limits(), Limits())
    ticket = await limiter.reserve(Cost(1, 1))
    limiter.pause(ticket, 30.0)
    began = clock.now()
    others = [await limiter.reserve(Cost(1, 1)) for _ in range(5)]
    assert clock.now() == began and all(t.lane is not ticket.lane for t in others)
    limiter.pause(others[0], 60.0)
    again = await limiter.reserve(Cost(1, 1))
    assert again.lane is ticket.lane and clock.now() >= began + 30


async def test_keys_of_one_organisation_share_its_limit():
    limiter, clock = limiter_of(Limits(requests=4))
    began = clock.now()
    keys = [(await limiter.reserve(Cost(1, 1))).key for _ in range(4)]
    assert clock.now() == began and len(set(keys)) == 2
    await limiter.reserve(Cost(1, 1))
    assert clock.now() > began


async def test_two_organisations_have_two_limits():
    limiter, clock = limiter_of(Limits(requests=4), Limits(requests=4))
    began = clock.now()
    lanes = [(await limiter.reserve(Cost(1, 1))).lane.name for _ in range(8)]
    assert clock.now() == began and sorted(lanes) == ["org0"] * 4 + ["org1"] * 4


async def test_a_limit_is_learnt_from_the_headers():
    limiter, clock = limiter_of(Limits())
    ticket = await limiter.reserve(Cost(1, 1))
    limiter.sync(ticket, {"requests": Told(limit=60, remaining=0, reset_s=60.0)})
    began = clock.now()
    await limiter.reserve(Cost(1, 1))
    assert 0.9 <= clock.now() - began <= 1.6


async def test_what_others_used_is_learnt_from_the_headers():
    limiter, clock = limiter_of(Limits(requests=600))
    ticket = await limiter.reserve(Cost(1, 1))
    limiter.sync(ticket, {"requests": Told(limit=600, remaining=1)})
    began = clock.now()
    for _ in range(11):
        await limiter.reserve(Cost(1, 1))
    assert 0.9 <= clock.now() - began <= 1.6


async def test_a_limit_per_day_is_not_taken_for_one_per_minute():
    limiter, _ = limiter_of(Limits())
    ticket = await limiter.reserve(Cost(1, 1))
    limiter.sync(ticket, {"requests": Told(limit=14_400, remaining=14_399, reset_s=6.0)})
    assert ticket.lane.buckets["requests"].limit == 0
    limiter.sync(ticket, {"requests": Told(limit=14_400, remaining=14_399, reset_s=0.004)})
    assert ticket.lane.buckets["requests"].limit == 14_400


async def test_our_own_lower_limit_stays():
    limiter, _ = limiter_of(Limits(requests=10))
    ticket = await limiter.reserve(Cost(1, 1))
    limiter.sync(ticket, {"requests": Told(limit=600, remaining=599)})
    assert ticket.lane.buckets["requests"].limit == 10


@pytest.mark.parametrize("refills", [True, False])
def test_a_limit_that_shrinks_is_kept_to_at_once_and_may_grow_again(refills):
    """Headers may say the limit alone; what stood in the larger one is not left over."""
    bucket = Bucket(1000, refills=refills)
    bucket.take(1, 0.0)
    bucket.sync(Told(limit=100), None, 1.0)
    bucket.check()
    sent = 0
    while bucket.wait_s(1, 2.0) == 0:
        bucket.take(1, 2.0)
        sent += 1
    assert sent <= 100
    bucket.sync(Told(limit=5000), None, 3.0)
    assert bucket.limit == 1000


@pytest.mark.parametrize("group", ["", "a"])
async def test_what_is_too_large_for_one_organisation_goes_to_another(group):
    limiter, _ = limiter_of(Limits(tokens=100), Limits(tokens=1000))
    assert (await limiter.reserve(Cost(10, 0), group)).lane.name == "org0"
    ticket = await limiter.reserve(Cost(500, 0), group)
    assert ticket.lane.name == "org1"
    limiter.settle(ticket, Cost(500, 0))
    limiter.done(ticket)
    with pytest.raises(RequestError, match="more than the limit"):
        await limiter.reserve(Cost(5000, 0), group)


async def test_what_is_too_large_wherever_its_beginning_is_not_read_is_refused():
    limiter, _ = limiter_of(Limits(tokens=100), Limits(tokens=1000))
    assert (await limiter.reserve(Cost(10, 0), "a")).lane.name == "org0"
    with pytest.raises(RequestError, match="5,000 tokens is more than the limit"):
        await limiter.reserve(Cost(500, 0), "a", cold=Cost(5000, 0))


def test_a_limit_that_shrinks_under_who_waits_sends_it_elsewhere():
    async def run() -> None:
        lanes = [Lane(f"org{i}", ("",), Limits(tokens=n)) for i, n in enumerate((400, 500))]
        limiter = Limiter(lanes, LoopClock())
        await limiter.reserve(Cost(350, 0))
        await limiter.reserve(Cost(450, 0))
        waiting = asyncio.create_task(limiter.reserve(Cost(300, 0)))
        await asyncio.sleep(1)
        (small,) = (lane for lane in lanes if lane.waiting["tokens"])
        small.buckets["tokens"].sync(Told(limit=200), None, LoopClock().now())
        assert (await waiting).lane is not small

    run_virtual(run())


def test_a_refusal_with_room_left_makes_smaller_pieces():
    bucket = Bucket(600)
    assert bucket.capacity == 600
    for i in range(20):
        bucket.narrow(i, i)
    assert bucket.capacity == 10
    times, now = [], 0.0
    for _ in range(50):
        while wait := bucket.wait_s(1, now):
            now += wait
        bucket.take(1, now)
        times.append(now)
    assert max(b - a for a, b in pairwise(times[11:])) <= 0.11


def test_what_was_under_way_together_is_one_refusal():
    bucket = Bucket(600)
    for _ in range(64):
        bucket.narrow(1.0, 1.5)
    assert bucket.capacity == 300


async def test_requests_pass_in_the_order_they_came():
    limiter, _ = limiter_of(Limits(tokens=100))
    order: list[int] = []

    async def one(i: int, cost: int) -> None:
        await limiter.reserve(Cost(cost, 0))
        order.append(i)

    await asyncio.gather(*(one(i, 90 if i == 1 else 5) for i in range(6)))
    assert order == list(range(6))


def test_no_key_is_shown():
    lane = Lane("org", ("sk-secret",), Limits())
    assert "sk-secret" not in repr(lane)
