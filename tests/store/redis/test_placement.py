from __future__ import annotations

from collections import Counter

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
from preread.testing.conformance_tier import key


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
