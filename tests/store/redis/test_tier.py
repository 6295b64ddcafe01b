"""One server (Valkey, and Redis where it is installed), three and a cluster through the suite of
all tiers."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Gone
from preread.store.tiers.redis.holding import BEGUN, Begun
from preread.store.tiers.redis.names import chunk_name
from preread.store.tiers.redis.tier import RedisTier
from preread.testing.conformance_tier import Clock, TierConformance, get, key, put
from tests.attacks.tools import FINGERPRINT, GEOMETRY, Truth
from tests.store.redis.conftest import Opener, ServerClock, cluster_url, emptied, list_url
from tests.store.valkey import Valkey, eventually


class TestOneServer(TierConformance):
    durable = True

    @pytest.fixture
    def running(self, three: list[Valkey]) -> list[Valkey]:
        return three[:1]

    @pytest.fixture
    def clock(self, opened: Opener, running: list[Valkey]) -> Clock:
        emptied(running)
        self.servers, self.opened = running, opened
        return ServerClock(running)

    def open(self, place: Path, budget: int, clock: Clock) -> RedisTier:
        return self.opened(list_url(self.servers, f"?budget={budget}&deadline=10s"), clock)


class TestRedis(TestOneServer):
    @pytest.fixture
    def running(self, redis_server: list[Valkey]) -> list[Valkey]:
        return redis_server


class TestThreeServers(TestOneServer):
    @pytest.fixture
    def running(self, three: list[Valkey]) -> list[Valkey]:
        return three


class TestCluster(TestOneServer):
    @pytest.fixture
    def running(self, clustered: list[Valkey]) -> list[Valkey]:
        return clustered

    def open(self, place: Path, budget: int, clock: Clock) -> RedisTier:
        return self.opened(cluster_url(self.servers[:1], f"?budget={budget}&deadline=10s"), clock)


def test_expired_is_told_from_evicted_by_the_deadline(opened: Opener, three: list[Valkey]) -> None:
    """The servers tell nobody what they drop."""
    server = three[0]
    emptied([server])
    clock = ServerClock([server])
    tier = opened(f"{server.url}?ttl=1h&deadline=10s", clock)
    for n in range(4):
        put(tier, n, b"x")
    clock.tick(1800)
    assert tier.find([key(0)], touch=True) == [True] and get(tier, 1) == b"x"
    server.command("DEL", chunk_name(key(0)), chunk_name(key(3)))  # as the server does, when full
    assert tier.left([key(0), key(3), key(9)]) == {key(0): Gone.EVICTED, key(3): Gone.EVICTED}
    clock.tick(3600)  # an eighth more at most: keys differ
    eventually(lambda: tier.find([key(2)]) == [False])
    assert tier.left([key(2), key(3)]) == {key(2): Gone.EXPIRED, key(3): Gone.EXPIRED}
    assert tier.remove([key(1)]) in (0, 1)
    other = opened(f"{server.url}?ttl=1h&deadline=10s", clock)
    assert other.left([key(2)]) == {}  # it never saw it; the catalog may know when it was used
    assert other.left([key(2)], since=clock() - 1000) == {}
    assert other.left([key(2)], since=clock() - 5000) == {key(2): Gone.EXPIRED}


class Running(ServerClock):
    """It goes on between ticks, as the servers' own does."""

    def __call__(self) -> float:
        return self.now + time.monotonic()


@pytest.mark.parametrize("options", ["budget=12000", "budget=12000&share=3000", "share=9000"])
def test_no_prefix_loses_its_head_before_its_tail(
    opened: Opener, three: list[Valkey], options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that is longer than its room evict its own beginning."""
    for module in ("tier", "holding"):  # this machine may be busy for a while
        monkeypatch.setattr(f"preread.store.tiers.redis.{module}.STEP_MS", 5000)
    server = three[0]
    emptied([server])
    clock = Running([server])
    tier = opened(f"{server.url}?{options}&deadline=10s", clock)
    stores = [Store([tier], GEOMETRY, FINGERPRINT, tenant=t) for t in ("alice", "bob")]
    draw, whole = random.Random(options), Truth.of(GEOMETRY, 80)
    lengths = []
    for _ in range(40):
        clock.tick(60)
        store, family = draw.choice(stores), draw.randrange(4)
        tokens = [family * 100 + i for i in range(draw.randrange(8, 80))]
        store.save(tokens, 0, whole.source)
        for one in stores:
            for n in range(4):
                keys = one.keys([n * 100 + i for i in range(80)])
                held = tier.find([ChunkKey(bytes.fromhex(key)) for key in keys])
                assert held == sorted(held, reverse=True)
                lengths.append(sum(held))
        assert tier.usage().nbytes <= 18_000
    assert max(lengths) > 4


def test_what_is_known_of_uses_is_bounded() -> None:
    """Many uses that share a long beginning, of each of which one chunk was never used again."""
    begun, head = Begun(Clock()), [key(n) for n in range(BEGUN // 8)]
    ends = [key(BEGUN + n) for n in range(40)]
    for end in ends:
        begun.note([*head, end])
    wholes = {id(whole): len(whole) for end in ends if (whole := begun.together(end))}
    assert sum(wholes.values()) <= BEGUN
    assert head[0] in begun.together(ends[-1]) and ends[-1] in begun.together(head[0])
    assert begun.when(ends[0]) and not begun.together(ends[0])
