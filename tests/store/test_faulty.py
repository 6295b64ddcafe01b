from __future__ import annotations

import pytest

from preread.errors import TierError
from preread.store.tiers.memory import MemoryTier
from preread.testing.conformance_tier import get, key, put
from preread.testing.faulty import FaultyTier, Plan, Trouble, at, often

VALUE = bytes(range(200))


def faulty(plan: Plan) -> tuple[FaultyTier, MemoryTier]:
    inner = MemoryTier()
    for n in range(3):
        put(inner, n, bytes([n]) + VALUE)
    return FaultyTier(inner, plan), inner


def differing_bits(a: bytes, b: bytes) -> int:
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


def test_reads_go_wrong_as_told_and_only_then() -> None:
    told = (None, Trouble.DROP, Trouble.FLIP, Trouble.TRUNCATE, Trouble.SWAP, Trouble.FULL)
    plan = {("read", n): trouble for n, trouble in enumerate(told) if trouble}
    tier, inner = faulty(at(plan))
    right = bytes(get(inner, 0) or b"")
    whole, dropped, flipped, cut, swapped, full = (get(tier, 0) for _ in told)
    assert whole == full == get(tier, 0) == right
    assert dropped is None
    assert flipped and differing_bits(flipped, right) == 1
    assert cut is not None and len(cut) < len(right) and right.startswith(cut)
    assert swapped in (get(inner, 1), get(inner, 2))
    assert tier.happened == [("read", n, trouble) for (_, n), trouble in plan.items()]


def test_writes_go_wrong() -> None:
    told = {
        ("write", 0): Trouble.DROP,
        ("write", 1): Trouble.FLIP,
        ("write", 2): Trouble.TRUNCATE,
        ("write", 3): Trouble.FULL,
        ("write", 4): Trouble.RAISE,
    }
    tier, inner = faulty(at(told))
    assert tier.write(key(10), [VALUE]) and get(inner, 10) is None
    assert tier.write(key(11), [VALUE])
    assert differing_bits(get(inner, 11) or b"", VALUE) == 1
    assert tier.write(key(12), [VALUE])
    assert len(get(inner, 12) or VALUE) < len(VALUE)
    for word in ("space", "fail"):
        with pytest.raises(TierError, match=word):
            tier.write(key(13), [VALUE])
    assert get(inner, 13) is None
    assert tier.write(key(13), [VALUE]) and get(inner, 13) == VALUE


def test_look_ups_and_removals_go_wrong() -> None:
    told = {("find", 0): Trouble.DROP, ("find", 1): Trouble.FLIP, ("remove", 0): Trouble.DROP}
    tier, inner = faulty(at(told))
    keys = [key(0), key(7)]
    assert [tier.find(keys) for _ in range(3)] == [[False, False], [False, True], [True, False]]
    assert tier.remove(keys) == 0 and inner.find(keys) == [True, False]
    assert tier.remove(keys) == 1


def test_every_method_can_fail_or_be_late() -> None:
    naps: list[float] = []
    inner = MemoryTier()
    late = FaultyTier(inner, lambda method, n: Trouble.DELAY, delay_s=9, sleep=naps.append)
    broken = FaultyTier(inner, lambda method, n: Trouble.RAISE)
    for method, args in (
        ("write", (key(1), [VALUE])),
        ("find", ([key(1)],)),
        ("read", ([key(1)],)),
        ("scan", ()),
        ("usage", ()),
        ("remove", ([key(1)],)),
    ):
        outcome = getattr(late, method)(*args)
        assert list(outcome) if method == "read" else outcome
        with pytest.raises(TierError):
            list(getattr(broken, method)(*args))
    assert naps == [9] * 6


def test_equal_seeds_make_equal_trouble() -> None:
    calls = [(method, n) for method in ("read", "write") for n in range(500)]
    one, same, other = ([often(seed, 0.2)(*call) for call in calls] for seed in (1, 1, 2))
    assert one == same != other
    assert 150 < sum(trouble is not None for trouble in one) < 250
    assert set(one) == {None, *Trouble}
    assert not any(often(1, 0.0)(*call) for call in calls)
