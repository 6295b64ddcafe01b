"""One server, three servers and a cluster through the suite of all tiers."""

from __future__ import annotations

from pathlib import Path

import pytest

from preread.store.tiers.redis.tier import RedisTier
from preread.testing.conformance_tier import Clock, TierConformance
from tests.store.redis.conftest import Opener, ServerClock, cluster_url, emptied, list_url
from tests.store.valkey import Valkey


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
