"""What happens between a process and a far tier, counted: one server, a cluster of three or six,
and S3 over HTTP, each behind proxies that misbehave, or killed. A request is what the engine does:
load what there is, compute the rest, save. Required: every request ends, nothing loaded is wrong
(`Truth.sink` compares), and all is well again without anything being opened anew."""

from __future__ import annotations

import contextlib
import random
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from preread.store.store import Store
from preread.store.tiers.base import Tier
from preread.store.tiers.breaker import Breaker
from preread.store.tiers.object import open_object
from preread.store.tiers.redis.cluster import Cluster
from preread.store.tiers.redis.dial import Address, Login
from preread.store.tiers.redis.node import Node
from preread.store.tiers.redis.placement import Rendezvous
from preread.store.tiers.redis.tier import RedisTier
from preread.store.tiers.urls import parse_tiers
from preread.testing.proxy import Act, Manner, Proxy
from tests.attacks.tools import FINGERPRINT, GEOMETRY, Den, Truth
from tests.servers import s3_server
from tests.store.valkey import Valkey, cluster, eventually, free_port, running, synced

TOKENS = Den.tokens  # 8 chunks, 7,564 bytes
REQUESTS = {"redis": 1000, "cluster": 1000, "s3": 40}  # while it is killed; of S3 each is many


def node(address: Address) -> Node:
    """Asked again at once after a failure, so that every try is one."""
    return Node(address, Login(), deadline_s=0.5, breaker=Breaker(cool_s=0.01, longest_s=0.02))


class Site:
    """A far tier, and how to do harm to it. kill, start: of one of its servers; started again, it
    is empty."""

    def __init__(
        self, tier: Tier, proxies: list[Proxy], kill: Callable[[], None], start: Callable[[], None]
    ) -> None:
        self.proxies, self.kill, self.start = proxies, kill, start
        self.truth = Truth.of(GEOMETRY, len(TOKENS))
        self.store = Store([tier], GEOMETRY, FINGERPRINT, always=True)

    def request(self) -> str:
        """How much of it was loaded; it is right or this raises."""
        report = self.store.load(TOKENS, len(TOKENS), self.truth.sink)
        if report.tokens < len(TOKENS):
            self.store.save(TOKENS, 0, self.truth.source)
        return {len(TOKENS): "all loaded", 0: "all computed"}.get(report.tokens, "some of each")

    def loaded(self) -> bool:
        return self.store.load(TOKENS, len(TOKENS), self.truth.sink).tokens == len(TOKENS)

    def behave(self, manner: Manner | None = None) -> None:
        for proxy in self.proxies:
            proxy.behave(manner)

    def recovers(self) -> None:
        self.behave()
        eventually(lambda: self.request() == "all loaded")


@contextlib.contextmanager
def redis_site(folder: Path) -> Iterator[Site]:
    with running(folder) as server, Proxy(("127.0.0.1", server.port)) as proxy:
        tier = RedisTier(Rendezvous([node(Address("127.0.0.1", proxy.port))]))
        with contextlib.closing(tier):
            yield Site(tier, [proxy], server.kill, server.start)


@contextlib.contextmanager
def cluster_site(folder: Path) -> Iterator[Site]:
    """Its servers tell clients the ports of their proxies."""
    with contextlib.ExitStack() as stack:
        ports = [free_port() for _ in range(3)]
        proxies = [stack.enter_context(Proxy(("127.0.0.1", port))) for port in ports]
        places = [(port, proxy.port) for port, proxy in zip(ports, proxies, strict=True)]
        servers = stack.enter_context(cluster(folder, places=places))
        seeds = [Address("127.0.0.1", proxy.port) for proxy in proxies]
        tier = stack.enter_context(contextlib.closing(RedisTier(Cluster(seeds, node))))
        yield Site(tier, proxies, servers[1].kill, servers[1].start)
        assert all(proxy.accepted for proxy in proxies)


@contextlib.contextmanager
def s3_site(folder: Path) -> Iterator[Site]:
    """moto cannot be killed in this process: nobody reaches it until it has lost everything."""
    with s3_server("bucket") as endpoint:
        port = int(endpoint.rpartition(":")[2])
        with Proxy(("127.0.0.1", port)) as proxy:
            (url,) = parse_tiers(
                f"s3://id:secret@bucket/kv?endpoint=http://127.0.0.1:{proxy.port}&deadline=1s"
            )

            def kill() -> None:
                proxy.behave(Manner(Act.RESET))

            def start() -> None:
                for path, method in (("moto-api/reset", "POST"), ("bucket", "PUT")):
                    asked = urllib.request.Request(f"{endpoint}/{path}", method=method)
                    urllib.request.urlopen(asked).close()
                proxy.behave()

            yield Site(open_object(url), [proxy], kill, start)


SITES = {"redis": redis_site, "cluster": cluster_site, "s3": s3_site}


@pytest.fixture(scope="module")
def lines(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    lines: list[str] = []
    yield lines
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("", *lines, sep="\n")


def told(lines: list[str], what: str, where: str, seen: Counter[str]) -> None:
    found = ", ".join(f"{how} {n}" for how, n in seen.most_common())
    lines.append(f"{what:28} {where:8} {seen.total():6} requests, 0 lost, 0 wrong: {found}")


@pytest.fixture(scope="module", params=list(SITES))
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Site]]:
    with SITES[request.param](tmp_path_factory.mktemp("site") / "server") as site:
        site.recovers()
        yield request.param, site


# What, how often, and what may come of it. The replies of one load are some 8,700 bytes.
MANNERS = {
    "slow": (4, lambda draw: Manner(delay_s=0.01)),
    "trickles": (2, lambda draw: Manner(rate=500)),
    "hangs in mid-value": (4, lambda draw: Manner(Act.HANG, draw.randrange(8700))),
    "reset in mid-value": (30, lambda draw: Manner(Act.RESET, draw.randrange(8700))),
    "cut off in mid-value": (30, lambda draw: Manner(Act.CLOSE, draw.randrange(8700))),
    "a bit flipped on the way": (30, lambda draw: Manner(Act.FLIP, draw.randrange(8700))),
}


@pytest.mark.parametrize("what", list(MANNERS))
def test_on_the_way(site: tuple[str, Site], lines: list[str], what: str) -> None:
    where, place = site
    times, manner = MANNERS[what]
    draw, seen = random.Random(what), Counter[str]()
    place.recovers()
    for _ in range(times if where != "s3" else -(-times // 3)):
        place.behave(manner(draw))
        seen[place.request()] += 1
        place.recovers()
    told(lines, what, where, seen)
    assert what != "slow" or seen.keys() == {"all loaded"}
    assert what != "trickles" or "all loaded" not in seen


def driven(
    request: Callable[[], str], count: int, at: dict[int, Callable[[], None]]
) -> Counter[str]:
    """So many requests from four threads; at[n] is done when n of them have ended."""
    seen, done, lock = Counter[str](), threading.Event(), threading.Lock()
    moments = {n: threading.Event() for n in at}

    def work() -> None:
        while not done.is_set():
            how = request()
            with lock:
                seen[how] += 1
                total = seen.total()
            for n, moment in moments.items():
                if total >= n:
                    moment.set()

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work) for _ in range(4)]
        try:
            for n, moment in sorted(moments.items()):
                assert moment.wait(120)
                at[n]()
            eventually(lambda: seen.total() >= count, 120)
        finally:
            done.set()
    for worker in workers:
        worker.result()
    return seen


def test_killed_and_started_empty_under_way(site: tuple[str, Site], lines: list[str]) -> None:
    """Of the cluster one of three."""
    where, place = site
    place.recovers()
    count = REQUESTS[where]
    seen = driven(place.request, count, {count // 4: place.kill, 3 * count // 4: place.start})
    told(lines, "killed, started empty", where, seen)
    assert seen.total() >= count and seen["all loaded"] and seen.total() > seen["all loaded"]
    place.recovers()


def test_six_nodes_lose_a_primary_and_its_replica_takes_over(
    tmp_path: Path, lines: list[str]
) -> None:
    """And back, when the first has come up again as a replica of the second."""
    with cluster(tmp_path, replicas=3) as servers:
        tier = RedisTier(Cluster([Address("127.0.0.1", s.port) for s in servers[:3]], node))
        with contextlib.closing(tier):
            place = Site(tier, [], lambda: None, lambda: None)
            place.recovers()
            first, second = primary_and_replica(servers)
            eventually(lambda: synced(second, first))

            def lose(server: Valkey) -> Callable[[], None]:
                def act() -> None:
                    server.kill()
                    eventually(place.loaded, 60)  # nothing is saved: the replica has it

                return act

            def return_() -> None:
                first.start()
                eventually(lambda: synced(first, second), 60)

            def only_load() -> str:
                return "all loaded" if place.loaded() else "some computed"

            moments = {200: lose(first), 500: return_, 600: lose(second)}
            seen = driven(only_load, 1000, moments)
            told(lines, "two primaries killed", "cluster6", seen)
            assert seen["some computed"] and seen["all loaded"] > 100
            assert place.store.save(TOKENS, 0, place.truth.source).stored and place.loaded()


def primary_and_replica(servers: list[Valkey]) -> tuple[Valkey, Valkey]:
    """Of chunks that are there."""
    pairs = list(zip(servers[:3], servers[3:], strict=True))
    return max(pairs, key=lambda pair: int(pair[0].command("DBSIZE")))
