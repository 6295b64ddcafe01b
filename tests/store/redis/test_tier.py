"""One server, three servers and a cluster through the suite of all tiers."""

from __future__ import annotations

from pathlib import Path

import pytest

from preread.store.tiers.base import Gone
from preread.store.tiers.redis.names import chunk_name
from preread.store.tiers.redis.tier import RedisTier
from preread.testing.conformance_tier import Clock, TierConformance, get, key, put
from tests.store.redis.conftest import Opener, ServerClock, cluster_url, emptied, list_url
from tests.store.valkey import Valkey, eventually


class TestOneServer(TierConformance):
    durable = True

    @pytest.fixture
    def clock(self, opened: Opener, three: list[Valkey]) -> Clock:
        self.servers = three[:1]
        emptied(self.servers)
        self.opened = opened
        return ServerClock(self.servers)

    def open(self, place: Path, budget: int, clock: Clock) -> RedisTier:
        return self.opened(list_url(self.servers, f"?budget={budget}&deadline=10s"), clock)


class TestThreeServers(TestOneServer):
    @pytest.fixture
    def clock(self, opened: Opener, three: list[Valkey]) -> Clock:
        self.servers = three
        emptied(self.servers)
        self.opened = opened
        return ServerClock(self.servers)


class TestCluster(TestOneServer):
    @pytest.fixture
    def clock(self, opened: Opener, clustered: list[Valkey]) -> Clock:
        self.servers = clustered
        emptied(self.servers)
        self.opened = opened
        return ServerClock(self.servers)

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
