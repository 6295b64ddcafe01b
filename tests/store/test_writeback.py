"""Writing behind: nobody waits for a slow tier, the queue is bounded, and what is lost is said."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from preread.metrics import Metrics
from preread.store.saving import Manner
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Tier
from preread.store.tiers.memory import MemoryTier
from preread.store.writeback import WriteBack, _Waiting
from preread.testing.conformance_tier import get, key
from preread.testing.faulty import FaultyTier, Trouble, at
from tests.attacks.tools import FINGERPRINT, Den

TOKENS = Den.tokens
BEHIND = {"far": Manner(behind=True)}
LOG = logging.getLogger("preread.store")


class Gated(MemoryTier):
    """Writes when it is let."""

    def __init__(self, name: str = "far") -> None:
        super().__init__(name=name)
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
        self.begun.release()
        return self.gate.acquire(timeout=60) and super().write(key, value)

    def open(self) -> None:
        for _ in range(1000):
            self.gate.release()


@pytest.fixture
def den(tmp_path: Path) -> Den:
    return Den(tmp_path / "kv")


def opened(den: Den, tiers: Sequence[Tier], manners: Mapping[str, Manner], **more: float) -> Store:
    return Store(
        tiers,
        den.truth.geometry,
        FINGERPRINT,
        metrics=den.metrics,
        manners=manners,
        drain_s=more.get("drain_s", 60.0),
    )


# --- a store that writes behind ---


def test_nobody_waits_for_a_far_tier_and_closing_writes_everything(den: Den) -> None:
    far = Gated()
    store = opened(den, [den.disk, far], BEHIND)
    report = store.save(TOKENS, 0, den.truth.source)  # would never return, if it waited
    assert (report.chunks, report.pending, report.stored) == (0, 8, True)
    assert far.usage().chunks == 0
    again = store.save(TOKENS, 0, den.truth.source)  # on its way: not written twice
    assert (again.pending, again.skipped, again.stored) == (0, 8, True)
    far.open()
    assert store.close() == {}
    assert den.load(den.open([far])).tokens == 29


def test_what_is_written_behind_is_what_it_was_when_saved(den: Den) -> None:
    """The memory of the tensor may hold other KV by the time it is written."""
    far = Gated()
    store = opened(den, [far], BEHIND)
    scratch = [den.truth.source(box).clone() for box in den.truth.geometry.boxes(0, 8)]
    boxes = iter(scratch)
    store.save(TOKENS[:8], 0, lambda box: next(boxes))
    for tensor in scratch:
        tensor.zero_()
    far.open()
    store.close()
    assert den.open([far]).load(TOKENS[:8], 8, den.truth.sink).tokens == 8


def test_what_cannot_be_written_in_time_is_said(den: Den, caplog: pytest.LogCaptureFixture) -> None:
    far = Gated()
    store = opened(den, [far], BEHIND, drain_s=0.05)
    store.save(TOKENS, 0, den.truth.source)
    assert far.begun.acquire(timeout=60)
    assert store.close() == {"far": 8}
    assert "8 chunks" in caplog.text and "were not written" in caplog.text
    assert den.metrics.snapshot()["store.unwritten.far"] == 8
    far.open()


def test_a_tier_that_fails_behind_gets_no_more_and_the_next_save_knows(
    den: Den, caplog: pytest.LogCaptureFixture
) -> None:
    inner = Gated()
    far = FaultyTier(inner, at({("write", 2): Trouble.RAISE}))
    store = opened(den, [den.disk, far], BEHIND)
    assert store.save(TOKENS, 0, den.truth.source).stored
    inner.open()
    assert store.close() == {}
    assert inner.usage().chunks == 2
    assert "6 chunks" in caplog.text and "the tier failed" in caplog.text
    assert den.metrics.snapshot()["store.unwritten.far"] == 6
    report = store.save(TOKENS, 0, den.truth.source)  # it has just failed
    assert (report.pending, report.stored) == (0, False)


def test_a_near_tier_is_written_before_save_returns(den: Den) -> None:
    near, far = MemoryTier(name="near"), Gated()
    store = opened(den, [near, far], BEHIND)
    report = store.save(TOKENS, 0, den.truth.source)
    assert (report.chunks, report.pending) == (8, 8) and near.usage().chunks == 8
    far.open()
    store.close()


def test_a_tier_is_not_counted_for_a_save(den: Den) -> None:
    """Redis looks at all its chunks to say what it holds."""
    tier = FaultyTier(MemoryTier(), lambda method, n: Trouble.DELAY, sleep=lambda _: None)
    opened(den, [tier], {}).save(TOKENS, 0, den.truth.source)
    assert {method for method, _, _ in tier.happened} == {"find", "used", "write"}


# --- promotion and the second touch ---


def test_what_came_from_far_is_written_to_nearer_tiers_within_their_budgets(den: Den) -> None:
    small = MemoryTier(name="small", budget=3000)
    store = opened(den, [small, den.disk], {})
    report = den.load(store)
    assert [row.tier for row in report.served] == ["disk"]
    assert store.save(TOKENS, 0, den.truth.source).stored is False  # not all of it fits
    assert 0 < small.usage().nbytes <= 3000
    assert [row.tier for row in den.load(store).served] == ["small", "disk"]


def test_a_far_tier_gets_what_is_used_a_second_time(den: Den) -> None:
    near, far = MemoryTier(name="near"), MemoryTier(name="far")
    for run in range(3):  # as three processes: nothing is remembered but in the tiers
        store = opened(den, [near, far], {"far": Manner(second_touch=True)})
        report = store.save(TOKENS, 0, den.truth.source)
        assert report.stored and far.usage().chunks == (8 if run else 0)


# --- the queue ---


def test_a_full_queue_makes_its_writers_wait(den: Den) -> None:
    far, added = Gated(), []
    behind = WriteBack(lambda *w: far.write(w[1], [w[2]]), Metrics(), LOG, limit=1000, drain_s=60)

    def add() -> None:
        for n in range(20):
            assert behind.add(far, key(n), bytes(300))
            added.append(n)

    thread = threading.Thread(target=add)
    thread.start()
    assert far.begun.acquire(timeout=60)
    for written in range(20):
        assert len(added) <= written + 3  # 1,000 bytes at once, the one at work among them
        far.gate.release()
        assert written == 19 or far.begun.acquire(timeout=60)
    thread.join()
    assert behind.drain() == {} and far.usage().chunks == 20


def test_a_value_larger_than_the_queue_goes_alone(den: Den) -> None:
    far = MemoryTier(name="far")
    behind = WriteBack(lambda *w: far.write(w[1], [w[2]]), Metrics(), LOG, limit=10, drain_s=60)
    for n in range(3):
        assert behind.add(far, key(n), bytes(300))
    assert behind.drain() == {} and get(far, 2) == bytes(300)


def test_a_queue_that_stays_full_takes_no_more(den: Den) -> None:
    far = Gated()
    behind = WriteBack(lambda *w: far.write(w[1], [w[2]]), Metrics(), LOG, limit=500, drain_s=0.05)
    assert behind.add(far, key(0), bytes(300))
    assert behind.add(far, key(1), bytes(300)) is False
    far.open()


def test_a_process_that_never_closes_its_store_still_writes(tmp_path: Path) -> None:
    code = f"""
import time, pathlib
from preread.metrics import Metrics
from preread.store.tiers.disk import DiskTier
from preread.store.writeback import WriteBack, _Waiting
from preread.testing.conformance_tier import key
import logging
disk = DiskTier(pathlib.Path({str(tmp_path)!r}), fsync=False)
def write(tier, key, value):
    time.sleep(0.02)
    return tier.write(key, [value])
behind = WriteBack(write, Metrics(), logging.getLogger("x"))
for n in range(20):
    behind.add(disk, key(n), b"x")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert len(list(tmp_path.rglob("*.kv"))) == 20


def test_a_tier_with_a_bug_does_not_stop_the_others() -> None:
    class Broken(MemoryTier):
        def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
            raise RuntimeError("a bug")

    broken, well = Broken(name="broken"), MemoryTier(name="well")

    def write(tier: Tier, key: ChunkKey, value: bytes) -> bool:
        return tier.write(key, [value])

    queue = WriteBack(write, Metrics(), LOG, drain_s=10.0)
    assert queue.add(broken, key(1), b"x") and queue.add(well, key(1), b"x")
    assert queue.drain() == {} and get(well, 1) == b"x"


def test_a_queue_that_stays_full_is_waited_for_once() -> None:
    far = Gated()

    def write(tier: Tier, key: ChunkKey, value: bytes) -> bool:
        return tier.write(key, [value])

    behind = WriteBack(write, Metrics(), LOG, limit=1, drain_s=60.0)
    assert behind.add(far, key(1), b"x") and far.begun.acquire(timeout=60)
    said: list[bool] = []
    waiting = threading.Thread(target=lambda: said.append(behind.add(far, key(2), b"x")))
    waiting.start()
    queue = behind._queue
    assert queue.add(_Waiting(far, key(3), b"x"), 0.5) is False
    waiting.join(30)
    assert said == [False]
    assert behind.add(far, key(4), b"x") is False
    far.open()
    assert behind.drain() == {} and get(far, 1) == b"x"


def test_a_value_that_a_tier_does_not_want_holds_no_other_up(den: Den) -> None:
    """A tier with a budget refuses what saves less than what it holds, and takes what saves more;
    it has not failed."""

    class Choosy(Gated):
        def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
            return b"dull" not in value and super().write(key, value)

    far = Choosy()
    behind = WriteBack(
        lambda tier, key, value: tier.write(key, [value]), den.metrics, LOG, drain_s=60.0
    )
    for n, value in enumerate([b"dull", b"good", b"dull", b"fine"]):
        assert behind.add(far, key(n), value)
    far.open()
    assert behind.drain() == {}
    assert get(far, 1) == b"good" and get(far, 3) == b"fine"
    assert behind.add(far, key(4), b"more"), "it has not failed"
    assert behind.drain() == {}
    assert den.metrics.snapshot()["store.unwritten.far"] == 2
    prefix: set[Tier] = set()  # its chunks are worth nothing without those before them
    for n, value in enumerate([b"good", b"dull", b"good"], 10):
        behind.add(far, key(n), value, prefix)
    assert behind.drain() == {}
    assert far.find([key(n) for n in (10, 11, 12)]) == [True, False, False]
    assert not behind.add(far, key(13), b"good", prefix) and behind.add(far, key(13), b"good")


def test_what_no_thread_can_be_had_for_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a container may have no more for a while: nobody waits, and the next is written."""
    tier = MemoryTier(name="far")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    behind = WriteBack(lambda tier, key, value: tier.write(key, [value]), Metrics(), LOG)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert not behind.add(tier, key(0), b"value 0")
        assert not behind.waiting(tier) and behind.drain() == {}
    assert behind.add(tier, key(1), b"value 1") and behind.drain() == {}
    assert tier.find([key(0), key(1)]) == [False, True]
