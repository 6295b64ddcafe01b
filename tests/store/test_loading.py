"""Loading from several tiers: who is asked what, who serves what, and why a prefix ends."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from preread.metrics import Metrics
from preread.store.asking import Asker
from preread.store.chunk import Fault
from preread.store.reports import End, Miss
from preread.store.tiers.base import ChunkKey, Outcome, Room, fresh
from preread.store.tiers.memory import MemoryTier
from preread.store.upkeep import Upkeep
from preread.testing.faulty import FaultyTier, Trouble, at
from tests.attacks.tools import Den, flip, forge

TOKENS = Den.tokens


class Heard(MemoryTier):
    """Remembers what it was asked."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.finds: list[list[ChunkKey]] = []
        self.reads: list[list[ChunkKey]] = []

    def find(self, keys: Sequence[ChunkKey], *, touch: bool = False) -> list[bool]:
        self.finds.append(list(keys))
        return super().find(keys, touch=touch)

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        self.reads.append(list(keys))
        return super().read(keys, room)


@pytest.fixture
def den(tmp_path: Path) -> Den:
    return Den(tmp_path / "kv")


def keys(den: Den, *boxes: int) -> list[ChunkKey]:
    return [ChunkKey(bytes.fromhex(den.keys[n])) for n in boxes]


def filled(den: Den, name: str, *without: int) -> Heard:
    """A tier with all eight chunks but some."""
    tier = Heard(name)
    den.open([tier]).save(TOKENS, 0, den.truth.source)
    tier.remove(keys(den, *without))
    tier.finds.clear()
    return tier


# --- who is asked, who serves ---


def test_each_tier_is_asked_once_for_what_no_nearer_one_holds(den: Den) -> None:
    near, middle, far = (
        filled(den, "near", 2, 3, 5, 6),
        filled(den, "middle", 3, 6),
        filled(den, "far"),
    )
    store = den.open([near, middle, far])
    report = den.load(store)
    assert report.tokens == 29 and report.end is None
    assert near.finds == [keys(den, *range(8))]
    assert middle.finds == [keys(den, 2, 3, 5, 6)]
    assert far.finds == [keys(den, 3, 6)]
    assert near.reads == [keys(den, 0, 1, 4, 7)]
    assert middle.reads == [keys(den, 2, 5)]
    assert far.reads == [keys(den, 3, 6)]
    # A span counts for the tier that gave its last box.
    assert [row[:4] for row in report.served] == [
        ("near", 4, 8 + 5, 512 + 1024 + 512 + 640),
        ("middle", 2, 8, 512 + 1024),
        ("far", 2, 8, 1024 + 320),
    ]
    assert sum(row.nbytes for row in report.served) == report.nbytes
    assert 0 < sum(row.ms for row in report.served) <= report.ms
    assert den.metrics.snapshot()["store.hit_bytes.middle"] == 512 + 1024


def test_a_tier_that_nothing_is_wanted_of_is_not_asked(den: Den) -> None:
    near, far = filled(den, "near"), filled(den, "far")
    assert [row.tier for row in den.load(den.open([near, far])).served] == ["near"]
    assert far.finds == far.reads == []


def test_what_was_found_is_not_asked_for_again(den: Den) -> None:
    tier = filled(den, "near")
    store = den.open([tier])
    found = store.find(TOKENS)
    assert (found.tokens, found.end) == (29, None)
    assert store.load(TOKENS, 24, den.truth.sink, start=8, found=found).tokens == 24
    assert len(tier.finds) == 1 and tier.reads == [keys(den, 2, 3, 4, 5)]


def test_values_are_read_to_the_stores_room(den: Den) -> None:
    given: list[int] = []

    def room(nbytes: int) -> memoryview:
        given.append(nbytes)
        return fresh(nbytes)

    from preread.store.store import Store
    from tests.attacks.tools import FINGERPRINT

    store = Store([den.disk], den.truth.geometry, FINGERPRINT, room=room)
    assert store.load(TOKENS, 29, den.truth.sink).tokens == 29
    assert sorted(given) == sorted(den.file(n).stat().st_size for n in range(8))


# --- what goes wrong on the way ---


@pytest.mark.parametrize("then", [Trouble.RAISE, Trouble.FLIP])
def test_a_tier_that_failed_behind_another_may_fail_again_in_its_own_stream(
    den: Den, then: Trouble
) -> None:
    inner = filled(den, "near", 1, 2, 3)
    near = FaultyTier(inner, at({("read", 0): Trouble.FLIP}))
    far = FaultyTier(filled(den, "far"), at({("read", 0): Trouble.RAISE, ("read", 1): then}))
    report = den.load(den.open([near, far]))
    assert report.tokens == 0 and report.end is not None
    assert [trouble for _, _, trouble in far.happened] == [Trouble.RAISE, then]


def test_a_tier_that_dies_in_mid_stream_is_left_and_those_behind_take_over(den: Den) -> None:
    inner, middle, far = filled(den, "near", 1), filled(den, "middle", 6), filled(den, "far")
    near = FaultyTier(inner, at({("read", 3): Trouble.RAISE}))
    report = den.load(den.open([near, middle, far]))
    assert report.tokens == 29 and report.faults == ()
    assert [method for method, _, _ in near.happened] == ["read"]
    assert inner.reads == [keys(den, n) for n in (0, 2, 3)]
    # Asked before for what near did not hold, and now for the rest.
    assert middle.finds == [keys(den, 1), keys(den, 4, 5, 6, 7)]
    assert [row[:2] for row in report.served] == [("near", 3), ("middle", 4), ("far", 1)]


def test_all_tiers_dead(den: Den) -> None:
    near = FaultyTier(filled(den, "near"), at({("read", 2): Trouble.RAISE}))
    far = FaultyTier(filled(den, "far"), at({("find", 0): Trouble.RAISE}))
    report = den.load(den.open([near, far]))
    assert (report.tokens, report.end) == (8, End(Miss.TIER_FAILED, 8))
    assert den.metrics.snapshot()["store.miss.tier_failed"] == 1


@pytest.mark.parametrize("trouble", [Trouble.DROP, Trouble.FLIP, Trouble.SWAP, Trouble.TRUNCATE])
def test_a_chunk_that_proves_missing_or_bad_is_asked_of_the_tiers_behind(
    den: Den, trouble: Trouble
) -> None:
    near = FaultyTier(filled(den, "near"), at({("read", n): trouble for n in (1, 4)}))
    middle = FaultyTier(filled(den, "middle"), at({("read", 0): trouble}))
    far = filled(den, "far")
    report = den.load(den.open([near, middle, far]))
    assert report.tokens == 29 and report.end is None
    assert far.reads == [keys(den, 1)]
    assert len(report.faults) == (0 if trouble is Trouble.DROP else 3)
    assert [row[:2] for row in report.served] == [("near", 6), ("middle", 1), ("far", 1)]


def test_a_tier_that_dies_behind_another_is_left_too(den: Den) -> None:
    near = FaultyTier(filled(den, "near"), at({("read", n): Trouble.FLIP for n in (1, 4)}))
    middle = FaultyTier(filled(den, "middle"), at({("read", 0): Trouble.RAISE}))
    report = den.load(den.open([near, middle, filled(den, "far")]))
    assert report.tokens == 29
    assert [trouble for _, _, trouble in middle.happened] == [Trouble.RAISE]
    assert [row[:2] for row in report.served] == [("near", 6), ("far", 2)]


def test_a_tier_that_gives_fewer_values_than_asked_has_failed(den: Den) -> None:
    class Short(Heard):
        def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
            return super().read(keys[:3], room)

    short = Short("short")
    den.open([short]).save(TOKENS, 0, den.truth.source)
    assert den.load(den.open([short, den.disk])).tokens == 29
    report = den.load(den.open([short]))
    assert (report.tokens, report.end) == (8, End(Miss.TIER_FAILED, 8))


@pytest.mark.parametrize("method", ["find", "read"])
@pytest.mark.parametrize("call", range(8))
def test_one_bad_call_of_any_kind_costs_nothing_with_a_second_tier(
    tmp_path: Path, method: str, call: int
) -> None:
    for trouble in (t for t in Trouble if t is not Trouble.FULL):
        den = Den(tmp_path / trouble.value)
        near = FaultyTier(filled(den, "near"), at({(method, call): trouble}), delay_s=0)
        assert den.load(den.open([near, den.disk])).tokens == 29


# --- why it ends ---


def test_why(den: Den) -> None:
    store = den.open([den.disk])
    other = (*TOKENS[:20], 7, 7, 7)
    assert store.find((8, *TOKENS)).end == End(Miss.NEVER_STORED, 0)
    assert store.find(other).end == End(Miss.TOO_SHORT, 16)  # token 20 differs
    assert store.find((*TOKENS, 1)).end == End(Miss.TOO_SHORT, 24)
    assert store.find(TOKENS).end is None
    os.unlink(den.file(6))
    assert store.find(TOKENS).end == End(Miss.GONE, 24)  # it was there a moment ago
    assert den.open([den.disk]).find(TOKENS).end == End(Miss.TOO_SHORT, 24)  # who never saw it
    assert store.load(TOKENS, 29, den.truth.sink).end == End(Miss.GONE, 24)
    assert den.load(store).tokens == 24
    counts = den.metrics.snapshot()
    assert [counts[f"store.miss.{why}"] for why in ("never_stored", "too_short", "gone")] == [
        1,
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ("fingerprint", Miss.OTHER_FINGERPRINT),
        ("tenant", Miss.OTHER_TENANT),
        ("chain", Miss.CORRUPT),
        ("box", Miss.CORRUPT),
    ],
)
def test_why_a_chunk_was_not_used(den: Den, field: str, why: Miss) -> None:
    if field == "box":
        flip(den.file(4), 300, 1)
    else:
        forge(den.file(4), field, bytes(32))
    assert den.load().end == End(why, 16)
    assert den.metrics.snapshot()[f"store.miss.{why.value}"] == 1


def test_every_fault_has_a_reason() -> None:
    assert {Miss.of(fault) for fault in Fault} == {
        Miss.CORRUPT,
        Miss.OTHER_FINGERPRINT,
        Miss.OTHER_TENANT,
    }


def test_what_was_seen_is_remembered_within_bounds(
    den: Den, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preread.store.asking.KNOWN", 4)
    tier = filled(den, "near")
    store = den.open([tier])
    asker: Asker = store._loader._asker
    store.find(TOKENS)
    assert [asker.lost([key]) for key in keys(den, *range(8))].count(Miss.GONE) == 4


def test_what_was_seen_is_remembered_by_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preread.store.asking.KNOWN", 50)
    tier, log = MemoryTier(), logging.getLogger("preread.test")
    asker = Asker([tier], Upkeep([tier], Metrics(), log), Metrics(), log)
    failed: list[BaseException] = []

    def write(who: int) -> None:
        try:
            for n in range(10_000):
                asker.write(tier, ChunkKey(bytes([who]) + n.to_bytes(31, "big")), [b""])
        except BaseException as exc:
            failed.append(exc)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads meet wherever they can
    try:
        threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert failed == []
