"""Random faults on the way, many readers and writers: late, lost, but never wrong."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from preread.errors import TierError
from preread.store.tiers.breaker import Breaker
from preread.store.tiers.redis.dial import Address, Login
from preread.store.tiers.redis.node import Node
from preread.store.tiers.redis.placement import Rendezvous
from preread.store.tiers.redis.tier import RedisTier
from preread.testing.conformance_tier import key
from preread.testing.proxy import Act, Manner, Proxy
from tests.store.valkey import Valkey, eventually

KEYS = 40
ROUNDS = 60  # faults


def value(n: int) -> bytes:
    """Of its key alone, of another length than its neighbours."""
    return hashlib.sha256(b"value %d" % n).digest() * (1 + 211 * n)


@pytest.fixture
def proxies(tmp_path: Path) -> Iterator[list[Proxy]]:
    servers = [Valkey(tmp_path / str(n)) for n in range(2)]
    made = [Proxy(("127.0.0.1", server.port)) for server in servers]
    yield made
    for proxy in made:
        proxy.close()
    for server in servers:
        server.kill()


@pytest.mark.parametrize("copies", [1, 2])
def test_faults_at_random_places(proxies: list[Proxy], copies: int) -> None:
    nodes = [
        Node(
            Address("127.0.0.1", proxy.port),
            Login(),
            deadline_s=0.5,
            breaker=Breaker(cool_s=0.01, longest_s=0.02),
        )
        for proxy in proxies
    ]
    tier = RedisTier(Rendezvous(nodes, copies), window=3)
    with contextlib.closing(tier):
        soak(tier, proxies, random.Random(copies))


def soak(tier: RedisTier, proxies: list[Proxy], draw: random.Random) -> None:
    seen: Counter[str] = Counter()
    done = threading.Event()

    def work(seed: int) -> None:
        draw = random.Random(seed)
        while not done.is_set():
            once(draw)

    def once(draw: random.Random) -> None:
        wanted = [draw.randrange(KEYS) for _ in range(draw.randrange(1, 8))]
        try:
            if draw.random() < 0.3:
                seen["written"] += tier.write(key(wanted[0]), [value(wanted[0])])
                return
            tier.find([key(n) for n in wanted], touch=draw.random() < 0.5)
            reads = tier.read([key(n) for n in wanted])
            for n, outcome in zip(wanted[: draw.randrange(1, 9)], reads, strict=False):
                right = outcome is None or outcome == value(n)
                seen["miss" if outcome is None else "right" if right else "WRONG"] += 1
        except TierError:
            seen["failed"] += 1

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(work, seed) for seed in range(3)]
        try:
            for n in range(ROUNDS):
                before = sum(seen.values())
                draw.choice(proxies).behave(manner(draw))
                eventually(lambda before=before: sum(seen.values()) > before + 5)  # type: ignore[misc]
                if n % 3 == 0:
                    for proxy in proxies:
                        proxy.behave()
        finally:
            done.set()
            for proxy in proxies:
                proxy.behave()
    for worker in workers:
        worker.result()
    assert seen["WRONG"] == 0
    assert min(seen["right"], seen["written"], seen["failed"] + seen["miss"]) > 5, seen
    eventually(lambda: healed(tier))


def manner(draw: random.Random) -> Manner:
    act = draw.choice((Act.RESET, Act.CLOSE, Act.HANG, Act.PASS))
    return Manner(act, int(draw.expovariate(1 / 150_000)), delay_s=draw.random() / 500)


def healed(tier: RedisTier) -> bool:
    try:
        for n in range(KEYS):
            tier.write(key(n), [value(n)])
        return list(tier.read([key(n) for n in range(KEYS)])) == [value(n) for n in range(KEYS)]
    except TierError:
        return False
