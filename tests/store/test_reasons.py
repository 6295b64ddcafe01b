"""Why KV is not there: told apart by whoever asks, also by another process where the medium keeps
it."""

from __future__ import annotations

from pathlib import Path

import pytest
from obstore.store import MemoryStore

from preread.store.reports import End, Miss
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Gone, Tier
from preread.store.tiers.bucket import Bucket
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.store.tiers.object import ObjectTier
from preread.testing.conformance_tier import Clock, key, put
from preread.testing.faulty import FaultyTier, Trouble, at
from tests.attacks.tools import FINGERPRINT, GEOMETRY, Den, flip

TOKENS = Den.tokens


@pytest.fixture
def den(tmp_path: Path) -> Den:
    return Den(tmp_path / "kv")


def chunk(den: Den, n: int) -> ChunkKey:
    return ChunkKey(bytes.fromhex(den.keys[n]))


def opened(*tiers: Tier) -> Store:
    return Store(tiers, GEOMETRY, FINGERPRINT)


def test_never_stored_and_too_short(den: Den) -> None:
    store = den.open([DiskTier(den.root)])
    assert store.find(tuple(range(9))).end == End(Miss.NEVER_STORED, 0)
    assert store.find((*TOKENS[:10], 7, 7, 7, 7, 7, 7)).end == End(Miss.TOO_SHORT, 8)


def test_evicted_is_known_to_other_processes_on_a_disk(den: Den) -> None:
    small = DiskTier(den.root, budget=8000, fsync=False)
    other = opened(small)
    for _ in range(2):
        other.save(tuple(range(700, 716)), 0, den.truth.source)
    found = den.open([DiskTier(den.root)]).find(TOKENS)
    assert found.end is not None and found.end.reason is Miss.EVICTED
    assert found.end.token == found.tokens > 0
    assert den.metrics.snapshot()["store.miss.evicted"] == 1


def test_removed_is_gone_and_set_aside_was_corrupt(den: Den) -> None:
    DiskTier(den.root).remove([chunk(den, 4)])
    assert den.open([DiskTier(den.root)]).find(TOKENS).end == End(Miss.GONE, 16)
    flip(den.file(2), 300, 1)
    assert den.load().end == End(Miss.CORRUPT, 8)
    for store in (den.store, den.open([DiskTier(den.root)])):
        assert store.find(TOKENS).end == End(Miss.CORRUPT, 8)


def test_written_again_nothing_is_missed(den: Den) -> None:
    DiskTier(den.root).remove([chunk(den, n) for n in range(8)])
    assert den.store.find(TOKENS).end == End(Miss.GONE, 0)
    den.save()
    assert den.store.find(TOKENS).end is None
    den.disk._folder._chunks = str(den.root / "elsewhere")  # unmounted, so to speak
    assert den.store.find(TOKENS).end == End(Miss.GONE, 0)  # nobody has said why


def test_what_cannot_be_set_aside_is_corrupt_while_it_stays(den: Den) -> None:
    stuck = FaultyTier(den.disk, at({("remove", 0): Trouble.DROP}))
    store = den.open([stuck])
    flip(den.file(2), 300, 1)
    assert den.load(store).end == End(Miss.CORRUPT, 8)
    assert store.find(TOKENS).end == End(Miss.CORRUPT, 8)


def test_the_tier_that_lost_it_last_says_why(den: Den) -> None:
    near = MemoryTier(name="near")
    store = den.open([near, den.disk])
    store.save(TOKENS, 0, den.truth.source)
    near.remove([chunk(den, 0)])
    assert store.find(TOKENS).end is None
    den.disk.remove([chunk(den, 0)], quarantine=True)
    assert store.find(TOKENS).end == End(Miss.CORRUPT, 0)


def test_a_tier_that_cannot_say_why_is_no_obstacle(den: Den) -> None:
    silent = FaultyTier(den.disk, at({("left", 0): Trouble.RAISE}))
    den.disk.remove([chunk(den, 4)])
    assert den.open([silent]).find(TOKENS).end == End(Miss.TOO_SHORT, 16)


def test_expired_in_a_bucket() -> None:
    clock, bucket = Clock(), Bucket(MemoryStore(), "memory")
    tier = ObjectTier(bucket, ttl_s=5000, clock=clock)
    for n in range(2):
        put(tier, n, b"x")
    clock.tick(6000)
    tier.find([key(1)], touch=True)
    assert tier.tidy(0.0) == 1
    assert tier.left([key(0), key(1)]) == {key(0): Gone.EXPIRED}
    other = ObjectTier(bucket, ttl_s=5000, clock=clock)
    assert other.left([key(0)]) == {}  # nobody is asked on the way to an answer
    assert other.left([key(0)], look=True) == {key(0): Gone.EXPIRED}


def test_every_way_to_go_has_a_reason() -> None:
    assert [Miss.after(gone) for gone in Gone] == [
        Miss.EVICTED,
        Miss.EXPIRED,
        Miss.GONE,
        Miss.CORRUPT,
    ]
