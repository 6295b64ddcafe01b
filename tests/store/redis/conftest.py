"""Servers are started once per session and emptied for every test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from preread.store.tiers.redis import open_redis
from preread.store.tiers.redis.reading import WINDOW
from preread.store.tiers.redis.tier import RedisTier
from preread.store.tiers.urls import parse_tiers
from preread.testing.conformance_tier import Clock
from tests.store import valkey
from tests.store.valkey import Valkey


class ServerClock(Clock):
    """What ticks here ticks on the servers: everything has less time left to live there."""

    def __init__(self, servers: Sequence[Valkey]) -> None:
        super().__init__()
        self._servers = servers

    def tick(self, seconds: float = 1000.0) -> None:
        super().tick(seconds)
        for server in self._servers:
            client = server.client()
            for name in client.keys("prd:*"):
                client.pexpire(name, client.pttl(name) - int(seconds * 1000))
            client.close()


Opener = Callable[..., RedisTier]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """opened(url, clock): a tier whose connections end with the test. Unless the URL says, several
    values are on the way at once, on any machine."""
    tiers: list[RedisTier] = []

    def open_one(url: str, clock: Clock | None = None) -> RedisTier:
        (parsed,) = parse_tiers(url)
        parsed = replace(parsed, options={"window": str(WINDOW), **parsed.options})
        tiers.append(open_redis(parsed, clock=clock) if clock else open_redis(parsed))
        return tiers[-1]

    yield open_one
    for tier in tiers:
        tier.close()


def list_url(servers: Sequence[Valkey], options: str = "") -> str:
    return f"redis://{';'.join(f'127.0.0.1:{s.port}' for s in servers)}{options}"


def cluster_url(servers: Sequence[Valkey], options: str = "") -> str:
    return list_url(servers, options).replace("redis://", "redis+cluster://")


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Valkey]]:
    """Three servers that know nothing of each other."""
    folder = tmp_path_factory.mktemp("valkey")
    servers = [Valkey(folder / str(n)) for n in range(3)]
    yield servers
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Valkey]]:
    """Redis itself, where it is installed."""
    if (program := shutil.which("redis-server")) is None:
        pytest.skip("redis-server is not installed")
    server = Valkey(tmp_path_factory.mktemp("redis"), program=program)
    yield [server]
    server.kill()


@pytest.fixture(scope="session")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Valkey]]:
    with valkey.cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


def emptied(servers: Sequence[Valkey]) -> None:
    for server in servers:
        server.command("FLUSHALL")
