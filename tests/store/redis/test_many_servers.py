"""A list of servers and a cluster: one that is lost takes its own keys at most."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from preread.errors import TierError
from preread.store.tiers.base import ChunkKey
from preread.store.tiers.redis.cluster import slot_of
from preread.store.tiers.redis.names import aside_name, chunk_name
from preread.store.tiers.redis.tier import RedisTier
from preread.testing.conformance_tier import get, key, put
from tests.store import valkey
from tests.store.redis.conftest import Opener, cluster_url, emptied, list_url
from tests.store.valkey import Valkey, eventually

N = 60


def value(n: int) -> bytes:
    return bytes([n]) * (1000 + n)


def filled(tier: RedisTier) -> RedisTier:
    for n in range(N):
        assert put(tier, n, value(n))
    return tier


def outcomes(tier: RedisTier) -> list[bytes | None]:
    read = list(tier.read([key(n) for n in range(N)]))
    return [bytes(one) if isinstance(one, memoryview) else None for one in read]


def holders(servers: Sequence[Valkey], n: int) -> list[int]:
    return [i for i, server in enumerate(servers) if server.command("EXISTS", chunk_name(key(n)))]


# --- a list, two copies ---


@pytest.fixture
def listed(tmp_path: Path) -> Iterator[list[Valkey]]:
    servers = [Valkey(tmp_path / str(n)) for n in range(3)]
    yield servers
    for server in servers:
        server.kill()


@pytest.fixture
def copies(opened: Opener, listed: list[Valkey]) -> RedisTier:
    return filled(opened(list_url(listed, "?deadline=2s")))


def test_two_copies_spread_evenly(listed: list[Valkey], copies: RedisTier) -> None:
    places = [holders(listed, n) for n in range(N)]
    assert {len(place) for place in places} == {2}
    count = Counter(i for place in places for i in place)
    assert min(count.values()) > N // 4  # 40, give or take six standard deviations: ports vary
    assert (copies.usage().chunks, len(list(copies.scan()))) == (N, N)
    assert copies.usage().nbytes == sum(len(value(n)) for n in range(N))


def test_one_of_three_is_lost_and_nothing_else(listed: list[Valkey], copies: RedisTier) -> None:
    listed[1].kill()
    assert outcomes(copies) == [value(n) for n in range(N)]
    assert copies.find([key(n) for n in range(N)], touch=True) == [True] * N
    assert len(list(copies.scan())) == copies.usage().chunks == N
    for n in range(N):
        assert put(copies, n, value(n)[::-1])
    assert outcomes(copies) == [value(n)[::-1] for n in range(N)]


def test_one_hangs_and_the_others_go_on(listed: list[Valkey], copies: RedisTier) -> None:
    listed[2].freeze()
    assert outcomes(copies) == [value(n) for n in range(N)]
    assert copies.find([key(n) for n in range(N)]) == [True] * N
    assert put(copies, 1, b"x")
    listed[2].thaw()


def test_one_that_refuses_is_spoken_of_and_the_other_copy_is_enough(
    listed: list[Valkey], copies: RedisTier, caplog: pytest.LogCaptureFixture
) -> None:
    listed[0].command("CONFIG", "SET", "maxmemory", 1)
    for n in range(N, 2 * N):
        assert put(copies, n, value(n))
    assert caplog.text.count("OOM") == 1 and f":{listed[0].port}: OOM" in caplog.text
    assert copies.find([key(n) for n in range(2 * N)]) == [True] * 2 * N
    assert outcomes(copies) == [value(n) for n in range(N)]


def test_one_comes_back_empty(listed: list[Valkey], copies: RedisTier) -> None:
    listed[0].kill()
    outcomes(copies)
    listed[0].start()
    assert outcomes(copies) == [value(n) for n in range(N)]
    eventually(lambda: put(copies, 7, b"new") and len(holders(listed, 7)) == 2)


def test_two_lost_servers_take_what_only_they_held(listed: list[Valkey], copies: RedisTier) -> None:
    left = [n for n in range(N) if 0 in holders(listed, n)]
    listed[1].kill()
    listed[2].kill()
    assert [n for n, one in enumerate(outcomes(copies)) if one is not None] == left
    assert copies.find([key(n) for n in range(N)]) == [n in left for n in range(N)]
    gone = next(n for n in range(N) if n not in left)
    assert copies.find([key(gone)]) == [False] and get(copies, gone) is None
    with pytest.raises(TierError):
        put(copies, gone, b"x")


def test_all_lost_is_a_tier_that_failed(listed: list[Valkey], copies: RedisTier) -> None:
    for server in listed:
        server.kill()
    with contextlib.suppress(TierError):  # it learns that all are down, not only one key's homes
        outcomes(copies)
    for ask in (
        lambda: copies.find([key(0)]),
        lambda: get(copies, 0),
        lambda: put(copies, 0, b""),
        lambda: list(copies.scan()),
        lambda: copies.usage(),
    ):
        with pytest.raises(TierError, match=r"127\.0\.0\.1"):
            ask()


def test_what_cannot_be_removed_everywhere_is_said(listed: list[Valkey], copies: RedisTier) -> None:
    """A bad copy that stays might come back: the store must know."""
    assert copies.remove([key(0)], quarantine=True) == 1
    listed[holders(listed, 1)[0]].kill()
    with pytest.raises(TierError):
        copies.remove([key(1)], quarantine=True)
    assert holders([s for s in listed if s.alive], 1) == []


def test_keys_stay_when_a_server_joins(
    opened: Opener, listed: list[Valkey], tmp_path: Path
) -> None:
    """Rendezvous hashing: what moves, moves to the new one. The order of the list means nothing."""
    filled(opened(list_url(listed[:2], "?copies=1")))
    before = [holders(listed, n) for n in range(N)]
    assert all(len(place) == 1 for place in before)
    wider = opened(list_url([listed[2], listed[1], listed[0]], "?copies=1"))
    held = wider.find([key(n) for n in range(N)])
    assert N // 4 < sum(held) < N  # two thirds stay, give or take six standard deviations
    for n in range(N):
        put(wider, n, value(n))
    after = [holders(listed, n) for n in range(N)]
    assert all(after[n] == before[n] if held[n] else 2 in after[n] for n in range(N))


# --- a cluster ---


@pytest.fixture
def own(tmp_path: Path) -> Iterator[list[Valkey]]:
    """A cluster that the test may damage."""
    with valkey.cluster(tmp_path / "cluster") as servers:
        yield servers


def test_slots_are_those_of_the_specification() -> None:
    assert slot_of(b"123456789") == 0x31C3
    assert slot_of(b"{user1000}.following") == slot_of(b"user1000")
    assert slot_of(b"foo{}{bar}") == slot_of(b"foo{}{bar}")
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")
    assert slot_of(chunk_name(key(1))) == slot_of(aside_name(key(1)))


def test_slots_are_those_of_the_server(clustered: list[Valkey]) -> None:
    for n in range(50):
        name = chunk_name(key(n))
        assert slot_of(name) == clustered[0].command("CLUSTER", "KEYSLOT", name)


def test_keys_spread_over_a_cluster(opened: Opener, clustered: list[Valkey]) -> None:
    emptied(clustered)
    filled(opened(cluster_url(clustered[2:])))
    assert min(server.command("DBSIZE") for server in clustered) >= N // 6


def test_one_of_three_is_killed_during_a_thousand_reads(opened: Opener, own: list[Valkey]) -> None:
    """Its keys become misses, the others are served; no exception and no wrong byte."""
    tier = filled(opened(cluster_url(own, "?deadline=1s")))
    lost = [n for n in range(N) if own[1].port == owner(own, n)]
    half = threading.Event()
    wrong: list[int] = []
    misses: set[int] = set()

    def read() -> None:
        for i in range(250):
            n = (i * 7) % N
            got = get(tier, n)
            if got is None:
                misses.add(n)
            elif got != value(n):
                wrong.append(n)
            if i == 100:
                half.set()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    half.wait(30)
    own[1].kill()
    for thread in threads:
        thread.join()
    assert not wrong and misses <= set(lost)
    assert [n for n, one in enumerate(outcomes(tier)) if one is None] == lost
    assert tier.find([key(n) for n in range(N)]) == [n not in lost for n in range(N)]
    with pytest.raises(TierError):
        put(tier, lost[0], b"x")
    kept = next(n for n in range(N) if n not in lost)
    assert put(tier, kept, b"x")
    assert {entry.key for entry in tier.scan()} == {key(n) for n in range(N) if n not in lost}


def owner(servers: Sequence[Valkey], n: int) -> int:
    """The port of the server that says it serves the key."""
    slot = slot_of(chunk_name(key(n)))
    for first, last, primary, *_ in servers[0].command("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            port: int = primary[1]
            return port
    raise AssertionError(slot)


def test_slots_that_move_are_followed(opened: Opener, own: list[Valkey]) -> None:
    """ASK while a slot moves, MOVED when it has."""
    tier = filled(opened(cluster_url(own, "?deadline=5s")))
    moving = next(n for n in range(N) if owner(own, n) == own[0].port)
    slot = slot_of(chunk_name(key(moving)))
    ids = [server.command("CLUSTER", "MYID").decode() for server in own]
    own[2].command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    own[0].command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[2])
    assert_served(tier, moving)
    own[0].command("MIGRATE", "127.0.0.1", own[2].port, chunk_name(key(moving)), 0, 5000)
    assert_served(tier, moving)  # by ASK
    for server in (own[2], own[0], own[1]):
        server.command("CLUSTER", "SETSLOT", slot, "NODE", ids[2])
    assert_served(tier, moving)  # by MOVED
    assert put(tier, moving, b"there") and get(tier, moving) == b"there"
    assert tier.remove([key(moving)], quarantine=True) == 1


def assert_served(tier: RedisTier, moving: int) -> None:
    """Writing included: another process's tier might do it."""
    assert outcomes(tier) == [value(n) for n in range(N)]
    assert tier.find([key(n) for n in range(N)], touch=True) == [True] * N
    assert put(tier, moving, value(moving))


def test_a_cluster_that_wants_all_or_nothing_says_how_to_change_that(
    opened: Opener, own: list[Valkey], caplog: pytest.LogCaptureFixture
) -> None:
    for server in own:
        server.command("CONFIG", "SET", "cluster-require-full-coverage", "yes")
    tier = filled(opened(cluster_url(own, "?deadline=1s")))
    assert caplog.text.count("CONFIG SET cluster-require-full-coverage no` on every server") == 3
    own[1].kill()
    eventually(lambda: b"cluster_state:fail" in own[0].command("CLUSTER", "INFO"))
    with pytest.raises(TierError):
        for _ in range(2):  # the first may meet the dead one
            tier.find([key(n) for n in range(N)])
            raise AssertionError("it cannot know")


def test_a_seed_that_is_down_is_passed_over(opened: Opener, clustered: list[Valkey]) -> None:
    emptied(clustered)
    seeds = f"127.0.0.1:{valkey.free_port()};127.0.0.1:{clustered[1].port}"
    assert get(filled(opened(f"redis+cluster://{seeds}")), 3) == value(3)


def test_the_wrong_scheme_is_said(
    opened: Opener, three: list[Valkey], clustered: list[Valkey]
) -> None:
    with pytest.raises(TierError, match=r"Write redis\+cluster:// instead"):
        opened(list_url(clustered[:1])).find([key(n) for n in range(20)])
    with pytest.raises(TierError, match="Write redis:// instead"):
        opened(cluster_url(three[:1])).find([key(1)])


def test_the_same_key_from_many_threads(opened: Opener, clustered: list[Valkey]) -> None:
    """More readers than connections are kept."""
    emptied(clustered)
    tier = filled(opened(cluster_url(clustered, "?pool=1&deadline=20s")))
    seen: set[bytes | None] = set()

    def read(wanted: ChunkKey) -> None:
        for outcome in tier.read([wanted] * 40):
            seen.add(bytes(outcome) if isinstance(outcome, memoryview) else None)

    threads = [threading.Thread(target=read, args=(key(5),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {value(5)}


def test_a_replica_that_takes_over_is_found(
    opened: Opener, own: list[Valkey], tmp_path: Path
) -> None:
    """Replicas are the cluster's own; the tier only has to ask who has the slots now."""
    replica = valkey.member(tmp_path / "replica")
    try:
        valkey.meet(own[0], replica)
        leader = own[1].command("CLUSTER", "MYID").decode()
        eventually(lambda: leader.encode() in replica.command("CLUSTER", "NODES"))
        replica.command("CLUSTER", "REPLICATE", leader)
        tier = filled(opened(cluster_url(own[:1], "?deadline=1s")))
        lost = next(n for n in range(N) if owner(own, n) == own[1].port)
        eventually(lambda: valkey.synced(replica, own[1]))
        own[1].kill()
        eventually(lambda: get(tier, lost) == value(lost), 30)
        assert put(tier, lost, b"new") and outcomes(tier).count(None) == 0
    finally:
        replica.kill()
