"""A group of requests stays with one organisation, until that one's limits hold it up."""

from __future__ import annotations

import asyncio
from collections import Counter

from preread.providers.homes import HELD_S
from preread.providers.lanes import Cost, Lane, Limits
from preread.providers.limits import Limiter, Ticket
from tests.providers.clock import LoopClock, TurnedClock, run_virtual

ONE = Cost(10, 1)


def limiter_of(*limits: Limits, firsts: int = 1, ttl_s: float = 0.0) -> tuple[Limiter, TurnedClock]:
    clock = TurnedClock()
    lanes = [Lane(f"org{i}", (f"sk-{i}-a",), given) for i, given in enumerate(limits)]
    return Limiter(lanes, clock, firsts=firsts, ttl_s=ttl_s), clock


async def sent(limiter: Limiter, group: str, n: int, *, answered: bool = True) -> list[str]:
    """Where so many requests go, one after the other."""
    names = []
    for _ in range(n):
        ticket = await limiter.reserve(ONE, group)
        names.append(ticket.lane.name)
        if answered:
            limiter.settle(ticket, ONE)
        limiter.done(ticket)
    return names


async def test_a_group_stays_at_home_and_groups_are_spread():
    limiter, _ = limiter_of(Limits(), Limits(), Limits())
    homes = {group: set(await sent(limiter, group, 20)) for group in "abcdef"}
    assert all(len(names) == 1 for names in homes.values())
    assert Counter(name for names in homes.values() for name in names) == dict.fromkeys(
        ("org0", "org1", "org2"), 2
    )


async def test_what_shares_nothing_goes_where_there_is_room():
    limiter, clock = limiter_of(Limits(requests=4), Limits(requests=4))
    began = clock.now()
    assert Counter(await sent(limiter, "", 8)) == {"org0": 4, "org1": 4} and clock.now() == began


async def test_a_moment_of_waiting_moves_nobody():
    limiter, clock = limiter_of(Limits(requests=600, refills=True), Limits(requests=600))
    home = await sent(limiter, "a", 1)
    for _ in range(60):
        assert await sent(limiter, "a", 10) == home * 10
        clock.time += HELD_S  # a rest, in which its limit recovers


async def test_a_limit_that_holds_it_up_lets_one_go_first_elsewhere():
    limiter, clock = limiter_of(Limits(requests=10), Limits(requests=100))
    home = (await sent(limiter, "a", 10))[0]
    began = clock.now()
    ticket = await limiter.reserve(ONE, "a", Cost(500, 1))
    assert ticket.lane.name != home and ticket.cost == Cost(500, 1)  # it reads the beginning there
    assert HELD_S <= clock.now() - began <= HELD_S + 0.5
    limiter.settle(ticket, ONE)
    limiter.done(ticket)
    assert await sent(limiter, "a", 50) == [ticket.lane.name] * 50
    assert clock.now() - began < 2  # and nobody waited any more


async def test_only_one_goes_first_and_the_others_wait_at_home():
    limiter, clock = limiter_of(Limits(requests=10), Limits(requests=100))
    home = (await sent(limiter, "a", 10))[0]
    first = await limiter.reserve(ONE, "a")
    began = clock.now()
    assert first.lane.name != home
    assert await sent(limiter, "a", 1) == [home] and clock.now() - began > 50


async def test_if_it_fails_the_next_goes_first():
    limiter, _ = limiter_of(Limits(requests=10), Limits(requests=100))
    home = (await sent(limiter, "a", 10))[0]
    places = []
    for answered in (False, True, True):
        ticket = await limiter.reserve(ONE, "a")
        if answered:
            limiter.settle(ticket, ONE)
        limiter.done(ticket)
        places.append((ticket.place.new, ticket.lane.name != home))
    assert places == [(True, True), (True, True), (False, True)]


async def test_two_go_first_where_a_beginning_must_be_seen_twice():
    limiter, _ = limiter_of(Limits(requests=10), Limits(requests=100), firsts=2)
    await sent(limiter, "a", 10)
    places = []
    for _ in range(4):
        ticket = await limiter.reserve(ONE, "a")
        places.append(ticket.place.new)
        limiter.settle(ticket, ONE)
        limiter.done(ticket)
    assert places == [True, True, False, False]


async def test_a_home_that_was_not_used_is_forgotten():
    limiter, clock = limiter_of(Limits(requests=10), Limits(requests=10), ttl_s=300)
    home = (await sent(limiter, "a", 10))[0]
    assert set(await sent(limiter, "a", 5)) != {home}  # at home in both
    clock.time += 280
    (last,) = set(await sent(limiter, "a", 1))
    clock.time += 100
    assert set(await sent(limiter, "a", 10)) == {last}


def group_run(bound: bool) -> tuple[float, int]:
    """Seconds and prefix reads of 400 requests of one group at two organisations with 100 a minute
    each: 2,000 shared tokens, 10 ms a request and 50 ms to read them. bound: to a home."""

    async def run() -> tuple[float, int]:
        lanes = [Lane(f"org{i}", ("",), Limits(requests=100, refills=True)) for i in range(2)]
        limiter = Limiter(lanes, LoopClock())
        places, known, read = asyncio.Semaphore(32), set[str](), 0
        loop = asyncio.get_running_loop()

        async def answer(ticket: Ticket) -> None:
            nonlocal read
            cold = ticket.lane.name not in known
            read += cold
            await asyncio.sleep(0.06 if cold else 0.01)
            known.add(ticket.lane.name)
            limiter.settle(ticket, ONE)
            limiter.done(ticket)

        async def one() -> None:
            async with places:
                await answer(await limiter.reserve(ONE, "a" if bound else ""))

        began = loop.time()
        await one()
        await asyncio.gather(*(one() for _ in range(399)))
        return loop.time() - began, read

    return run_virtual(run())


def test_it_reads_once_for_each_organisation_and_loses_no_time():
    """Beside sending each request where there is room: about the same time, a fraction of the
    reads."""
    spread_s, spread_reads = group_run(bound=False)
    bound_s, bound_reads = group_run(bound=True)
    assert bound_reads == 2 < 10 < spread_reads
    assert bound_s <= spread_s + 2 * HELD_S and spread_s >= 59
