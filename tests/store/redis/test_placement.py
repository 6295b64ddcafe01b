from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from preread.store.tiers.base import Room, fresh
from preread.store.tiers.redis.cluster import Cluster
from preread.store.tiers.redis.dial import Address, Login
from preread.store.tiers.redis.names import (
    JITTER,
    aside_name,
    chunk_name,
    parsed,
    residency_ms,
)
from preread.store.tiers.redis.node import Node
from preread.store.tiers.redis.placement import Rendezvous
from preread.store.tiers.redis.wire import Command, Reply
from preread.testing.conformance_tier import Clock, key


def ring(names: list[str], copies: int = 2) -> Rendezvous:
    return Rendezvous([Node(Address(name, 6379), Login()) for name in names], copies)


def homes(placement: Rendezvous, n: int) -> list[str]:
    return [node.address.host for node in placement.homes(key(n))]


def test_every_process_finds_the_same_homes() -> None:
    """Pinned: another order or hash would lose what is stored."""
    assert [homes(ring(["a", "b", "c"]), n) for n in range(4)] == [
        homes(ring(["c", "a", "b"]), n) for n in range(4)
    ]
    assert "".join(homes(ring(["a", "b", "c"]), n)[0] for n in range(16)) == "accbbcabaaccabab"


def test_each_key_has_as_many_homes_as_copies_and_servers() -> None:
    for copies, servers in ((1, 3), (2, 3), (2, 1), (5, 3)):
        places = [homes(ring(list("abc")[:servers], copies), n) for n in range(50)]
        assert {len(set(place)) for place in places} == {min(copies, servers)}


def test_load_is_even_and_a_lost_server_moves_only_its_own() -> None:
    names = [f"host{n}" for n in range(5)]
    before = {n: homes(ring(names), n) for n in range(2000)}
    count = Counter(name for place in before.values() for name in place)
    assert all(650 < c < 950 for c in count.values())  # 800, give or take seven standard deviations
    after = {n: homes(ring(names[:-1]), n) for n in range(2000)}
    for n, place in before.items():
        kept = [name for name in place if name != names[-1]]
        assert after[n][: len(kept)] == kept


def test_servers_that_all_hang_cost_a_deadline_a_second_and_not_one_for_every_key() -> None:
    """Who holds which key is asked for when a server has failed; meanwhile the old map serves."""
    clock, hanging, asked = Clock(), False, []

    class Slow(Node):
        def ask(self, commands: Sequence[Command], room: Room = fresh) -> list[Reply]:
            asked.append(self.address.port)
            if hanging:
                clock.tick(self.deadline_s)
                raise self.down("no answer")
            host = memoryview(b"127.0.0.1")
            return [[[n * 4096, n * 4096 + 4095, [host, 7000 + n]] for n in range(4)]]

        def up(self) -> bool:
            return True

    placement = Cluster(
        [Address("127.0.0.1", 7000)],
        lambda address: Slow(address, Login(), deadline_s=0.5),
        clock=clock,
    )
    homes = [placement.homes(key(n)) for n in range(50)]
    assert asked == [7000] and {len(some) for some in homes} == {1}
    hanging = True
    clock.tick(10)
    for n in range(50):
        placement.failed(homes[n][0])
        assert placement.homes(key(n)) == homes[n]
    assert len(asked) == 2  # one deadline, not one for each of four servers and fifty keys
    for _ in range(6):
        clock.tick(1)
        placement.homes(key(1))
    assert len(set(asked)) == 4  # another one each time
    hanging = False
    clock.tick(1)
    assert placement.homes(key(1)) and len(asked) == 9
    placement.homes(key(1))
    assert len(asked) == 9


def test_names_are_read_back() -> None:
    assert parsed(chunk_name(key(5))) == (key(5), False)
    assert parsed(aside_name(key(5))) == (key(5), True)
    assert chunk_name(key(5)) == b"prd:{%s}" % key(5).hex().encode()
    for other in (b"prd:{}", b"prd:{12}", b"catalog", chunk_name(key(5)) + b"x", b"x" + b"prd:{}"):
        assert parsed(other) is None


def test_what_is_stored_together_does_not_expire_together() -> None:
    times = [residency_ms(key(n), 100.0) for n in range(200)]
    assert 100_000 <= min(times) < max(times) < 100_000 * (1 + 1 / JITTER)
    assert len(set(times)) > 150
    assert times == [residency_ms(key(n), 100.0) for n in range(200)]
