"""The suite that every tier passes. Subclass `TierConformance` in a test file and say how to open
one; pytest does the rest."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from preread.store.tiers.base import ChunkKey, ChunkUnreadable, Landed, Outcome, Tier, fresh
from preread.store.tiers.landing import Fill, InRoom, Landing, Lands


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float = 1000.0) -> None:
        self.now += seconds


def key(n: int) -> ChunkKey:
    return ChunkKey(hashlib.sha256(b"%d" % n).digest())


def put(tier: Tier, n: int, value: bytes) -> bool:
    return tier.write(key(n), [value])


def get(tier: Tier, n: int) -> bytes | None:
    """The value, None when it is not held. Raises ChunkUnreadable, TierError."""
    (outcome,) = tier.read([key(n)])
    return taken(outcome)


def taken(outcome: Outcome) -> bytes | None:
    if isinstance(outcome, ChunkUnreadable):
        raise outcome
    assert outcome is None or isinstance(outcome, memoryview), outcome
    return None if outcome is None else bytes(outcome)


class Wants(Lands):
    """A room that wants values of known sizes in pieces of seven bytes; landed: what came so."""

    def __init__(self, sizes: Mapping[ChunkKey, int]) -> None:
        self.landed: dict[ChunkKey, bytes] = {}
        self._sizes = sizes

    def __call__(self, nbytes: int) -> memoryview:
        return fresh(nbytes)

    def landing(self, key: ChunkKey, nbytes: int) -> Landing:
        if self._sizes.get(key) != nbytes:
            return InRoom(fresh, nbytes)
        return _Pieces(self, key, nbytes)


class _Pieces(InRoom):
    def __init__(self, wants: Wants, key: ChunkKey, nbytes: int) -> None:
        super().__init__(fresh, nbytes)
        self._wants, self._key = wants, key
        self._place = bytearray(nbytes)

    def scatter(self, fill: Fill) -> Landed | None:
        whole = memoryview(self._place)
        views, done = [whole[n : n + 7] for n in range(0, len(whole), 7)], 0
        for n in range(0, len(views), 50):  # as many at once as the landing likes
            done += fill(views[n : n + 50], done)
        if done < len(whole):
            return None
        self._wants.landed[self._key] = bytes(whole)
        return Landed()


class TierConformance:
    """durable: what was written is there for whoever opens the same place again."""

    durable: ClassVar[bool] = False

    def open(self, place: Path, budget: int, clock: Clock) -> Tier:
        """A tier at `place` (an own empty folder per test) that tells the time by `clock`."""
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def tier(self, tmp_path: Path, clock: Clock) -> Tier:
        return self.open(tmp_path, 0, clock)

    def test_is_a_tier(self, tier: Tier) -> None:
        assert isinstance(tier, Tier) and tier.name

    def test_gives_back_the_parts_as_one_value(self, tier: Tier) -> None:
        words: memoryview = memoryview(b"\1\0\2\0").cast("H")
        parts: list[bytes | memoryview] = [b"head", memoryview(bytearray(b"payload")), words, b""]
        assert tier.write(key(1), parts) is True
        assert get(tier, 1) == b"headpayload\1\0\2\0"

    def test_knows_what_it_does_not_hold(self, tier: Tier) -> None:
        put(tier, 1, b"a")
        put(tier, 3, b"b")
        assert tier.find([key(n) for n in (3, 2, 1, 3)]) == [True, False, True, True]
        assert tier.find([]) == []
        assert get(tier, 2) is None

    def test_overwrites(self, tier: Tier) -> None:
        put(tier, 1, b"long and old")
        put(tier, 1, b"new")
        assert get(tier, 1) == b"new"
        assert (tier.usage().chunks, tier.usage().nbytes) == (1, 3)

    def test_reads_many_in_order(self, tier: Tier) -> None:
        """More than any window holds, some of them not there, some twice."""
        for n in range(0, 60, 2):
            put(tier, n, bytes([n]) * (1 + 700 * n))
        order = [*range(60), 4, 4, 59, 0]
        for n, value in zip(order, tier.read([key(n) for n in order]), strict=True):
            assert taken(value) == (None if n % 2 else bytes([n]) * (1 + 700 * n))
        assert list(tier.read([])) == []

    def test_each_value_lies_in_a_buffer_of_the_callers_own(self, tier: Tier) -> None:
        given: list[memoryview] = []

        def room(nbytes: int) -> memoryview:
            given.append(fresh(nbytes))
            return given[-1]

        for n in range(8):
            put(tier, n, bytes([n]) * 100)
        for n, value in enumerate(tier.read([key(n) for n in (0, 1, 2, 3, 4, 5, 6, 7)], room)):
            assert isinstance(value, memoryview) and not value.readonly and value.format == "B"
            value[:] = bytes([n + 100]) * 100
        assert sorted(bytes(view) for view in given) == [bytes([n + 100]) * 100 for n in range(8)]
        assert [get(tier, n) for n in range(8)] == [bytes([n]) * 100 for n in range(8)]

    def test_a_value_may_land_where_it_is_wanted(self, tier: Tier) -> None:
        """Through `landing`, or not: the bytes are the same, and a size that is not known yet is
        no surprise."""
        room = Wants({key(n): 5000 + n for n in range(0, 9, 2)})
        for n in range(8):
            put(tier, n, bytes([n]) * (5000 + n))
        order = [3, 4, 9, 0, 2, 1, 6, 8]
        for n, outcome in zip(order, tier.read([key(n) for n in order], room), strict=True):
            want = None if n > 7 else bytes([n]) * (5000 + n)
            assert (taken(outcome) if key(n) not in room.landed else room.landed[key(n)]) == want
        put(tier, 4, b"shorter")
        (outcome,) = tier.read([key(4)], room)
        assert taken(outcome) == b"shorter"

    def test_an_abandoned_read_does_no_harm(self, tier: Tier) -> None:
        for n in range(30):
            put(tier, n, bytes([n]) * 5000)
        for take in (0, 1, 3):
            reads = tier.read([key(n) for n in range(30)])
            for n in range(take):
                assert taken(next(reads)) == bytes([n]) * 5000
            if isinstance(reads, Generator):
                reads.close()
            assert [get(tier, n) for n in (0, 29)] == [bytes([n]) * 5000 for n in (0, 29)]

    def test_other_calls_go_between_the_values_of_a_read(self, tier: Tier) -> None:
        for n in range(30):
            put(tier, n, bytes([n]) * 500)
        for n, value in enumerate(tier.read([key(n) for n in range(30)])):
            assert taken(value) == bytes([n]) * 500
            assert tier.remove([key(n)], quarantine=n % 2 == 0) == 1 and tier.find([key(n)]) == [0]
            assert put(tier, n + 100, b"new") and get(tier, n + 100) == b"new"
        assert tier.usage().chunks == 30

    @pytest.mark.parametrize("quarantine", [False, True])
    def test_removes(self, tier: Tier, quarantine: bool) -> None:
        for n in range(3):
            put(tier, n, b"x")
        assert tier.remove([key(0), key(2), key(9)], quarantine=quarantine) == 2
        assert tier.find([key(0), key(1), key(2)]) == [False, True, False]
        assert get(tier, 0) is None
        assert tier.remove([key(0)], quarantine=quarantine) == 0
        assert put(tier, 0, b"again") and get(tier, 0) == b"again"

    def test_scans_exactly_what_it_holds(self, tier: Tier, clock: Clock) -> None:
        assert list(tier.scan()) == []
        for n in range(20):
            put(tier, n, b"x" * n)
        tier.remove([key(7)])
        held = {entry.key: entry for entry in tier.scan()}
        assert set(held) == {key(n) for n in range(20) if n != 7}
        assert all(held[key(n)].nbytes == n for n in range(20) if n != 7)
        assert all(abs(entry.last_used - clock()) < 1 for entry in held.values())

    def test_counts(self, tmp_path: Path, clock: Clock) -> None:
        tier = self.open(tmp_path, 1000, clock)
        assert (tier.usage().chunks, tier.usage().nbytes, tier.usage().budget) == (0, 0, 1000)
        assert tier.budget == 1000
        put(tier, 1, b"x" * 10)
        put(tier, 2, b"x" * 5)
        assert (tier.usage().chunks, tier.usage().nbytes) == (2, 15)

    def test_keeps_to_its_budget(self, tmp_path: Path, clock: Clock) -> None:
        tier = self.open(tmp_path, 1000, clock)
        for n in range(40):
            clock.tick()
            assert put(tier, n, b"x" * 90) is True
            assert tier.usage().nbytes <= 1000
            assert tier.find([key(n)]) == [True]
        assert tier.usage().chunks >= 8

    def test_the_least_recently_used_goes_first(self, tmp_path: Path, clock: Clock) -> None:
        tier = self.open(tmp_path, 1000, clock)
        for n in range(10):
            clock.tick()
            put(tier, n, b"x" * 90)
        clock.tick()
        assert get(tier, 0) is not None
        clock.tick()
        put(tier, 10, b"x" * 150)
        assert tier.find([key(0), key(1), key(9), key(10)]) == [True, False, True, True]

    def test_a_look_up_that_touches_counts_as_use(self, tmp_path: Path, clock: Clock) -> None:
        tier = self.open(tmp_path, 1000, clock)
        for n in range(10):
            put(tier, n, b"x" * 90)
            clock.tick()
        assert tier.find([key(1)]) == [True]  # does not
        assert tier.find([key(0), key(77)], touch=True) == [True, False]
        put(tier, 10, b"x" * 150)
        assert tier.find([key(0), key(1), key(77)]) == [True, False, False]

    def test_refuses_what_can_never_fit(self, tmp_path: Path, clock: Clock) -> None:
        tier = self.open(tmp_path, 1000, clock)
        put(tier, 1, b"x" * 500)
        assert put(tier, 2, b"x" * 1001) is False
        assert tier.find([key(1), key(2)]) == [True, False]

    def test_threads_see_whole_values_only(self, tier: Tier) -> None:
        values = [bytes([n]) * 5000 for n in range(4)]
        seen: set[bytes] = set()
        tier.write(key(1), [values[0]])

        def write(value: bytes) -> None:
            for _ in range(20):
                tier.write(key(1), [value[:100], value[100:]])

        def read() -> None:
            for _ in range(100):
                seen.add(get(tier, 1) or b"gone")

        threads = [threading.Thread(target=write, args=(v,)) for v in values]
        threads += [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen and seen <= set(values)

    def test_survives_its_process(self, tmp_path: Path, clock: Clock) -> None:
        put(self.open(tmp_path, 0, clock), 1, b"kept")
        again = self.open(tmp_path, 0, clock)
        assert again.find([key(1)]) == [self.durable]
        assert get(again, 1) == (b"kept" if self.durable else None)
        assert len(list(again.scan())) == self.durable

    def test_two_openers_see_each_other(self, tmp_path: Path, clock: Clock) -> None:
        one, two = (self.open(tmp_path, 1000, clock) for _ in range(2))
        put(one, 1, b"x" * 400)
        assert two.find([key(1)]) == [self.durable]
        put(two, 2, b"x" * 400)
        clock.tick()
        one.remove([key(1)])
        assert two.find([key(1)]) == [False] and get(two, 1) is None
        clock.tick()
        put(two, 3, b"x" * 400)
        clock.tick()
        put(one, 4, b"x" * 400)
        if self.durable:  # one budget for both
            assert one.find([key(2), key(3), key(4)]) == [False, True, True]
