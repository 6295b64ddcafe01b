from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from preread.errors import EngineError, TierError
from preread.metrics import Metrics
from preread.store.chunk import Fault
from preread.store.keys import OVERHEAD, Box, Geometry
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.testing.conformance_tier import Clock
from preread.testing.faulty import FaultyTier, Trouble, at
from tests.attacks.tools import FINGERPRINT, GEOMETRY, Den, Truth, flip

TOKENS = Den.tokens


@pytest.fixture
def den(tmp_path: Path) -> Den:
    return Den(tmp_path / "kv")


def sizes(den: Den) -> list[int]:
    return [den.file(n).stat().st_size for n in range(8)]


# --- the way it goes when nothing is wrong ---


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("limit", [100_000, 1024 + OVERHEAD, 600, 400])
def test_another_process_gets_the_same_bits(tmp_path: Path, dtype: str, limit: int) -> None:
    """Boxes of all layers, of some, of one, and of one head."""
    den = Den(tmp_path, Geometry(3, 2, 4, dtype, chunk_tokens=8, chunk_bytes=max(limit, 528)))
    again = den.open([DiskTier(tmp_path)])
    assert again.match(TOKENS) == den.load(again).tokens == len(TOKENS)
    assert max(entry.nbytes for entry in den.disk.scan()) <= max(limit, 528)


def test_a_text_shares_whole_chunks_with_another(den: Den) -> None:
    longer = (*TOKENS[:20], 7, 7, 7)
    assert den.store.match(longer) == 16
    assert den.store.load(longer, 23, den.truth.sink).tokens == 16
    assert den.store.match((8, *TOKENS)) == 0
    assert den.store.match(TOKENS[:16]) == 16
    assert den.store.match(()) == 0


def test_upto_and_start_cut_whole_chunks(den: Den) -> None:
    for start, upto, boxes, tokens in (
        (0, 29, 8, 29),
        (0, 28, 6, 24),  # the last chunk is whole or not at all
        (0, 7, 0, 0),
        (8, 24, 4, 24),
        (12, 16, 2, 16),  # token 12 lies in [8, 16): delivered whole
        (16, 16, 0, 16),
    ):
        den.truth.boxes.clear()
        report = den.store.load(TOKENS, upto, den.truth.sink, start=start)
        assert (len(den.truth.boxes), report.tokens) == (boxes, tokens)
        assert report.nbytes == sum(den.truth.source(box).nbytes for box in den.truth.boxes)


def test_save_writes_what_is_lacking_and_asks_for_nothing_else(den: Den) -> None:
    asked: list[Box] = []

    def source(box: Box) -> torch.Tensor:
        asked.append(box)
        return den.truth.source(box)

    assert den.store.save(TOKENS, 0, source)[:4] == (0, 0, 8, True)
    os.unlink(den.file(3))
    os.unlink(den.file(6))
    report = den.store.save(TOKENS, 16, source)
    assert (report.chunks, report.skipped, report.stored) == (1, 3, False)
    assert report.keys == den.keys == den.store.keys(TOKENS)
    assert asked == [Box(24, 29, 0, 1, 0, 2)]
    assert report.nbytes == den.file(6).stat().st_size
    assert den.store.match(TOKENS) == 8


def test_the_delivered_tensor_stays_as_it_is(den: Den) -> None:
    """Whatever becomes of the value that it may be a view of."""
    tier, held = MemoryTier(), dict[Box, torch.Tensor]()
    store = den.open([tier])
    keys = store.save(TOKENS, 0, den.truth.source).keys
    store.load(TOKENS, 29, held.__setitem__)
    tier.remove([ChunkKey(bytes.fromhex(key)) for key in keys])
    store.save(TOKENS, 0, Truth.of(GEOMETRY, 29, seed=1).source)
    assert len(held) == 8
    assert all(torch.equal(kv, den.truth.source(box)) for box, kv in held.items())


def test_who_writes_to_a_delivered_tensor_harms_nobody(den: Den) -> None:
    """It is not to be written to; who does loses the chunk, and nobody believes it."""

    def spoil(box: Box, tensor: torch.Tensor) -> None:
        tensor.add_(1)

    store = den.open([MemoryTier()])
    store.save(TOKENS, 0, den.truth.source)
    store.load(TOKENS, 29, spoil)
    report = den.load(store)  # which compares what comes
    assert report.tokens == 0 and {why for why, _ in report.faults} == {"checksum"}


def test_what_sink_and_source_raise_is_passed_on(den: Den) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        den.store.load(TOKENS, 29, broken)  # type: ignore[arg-type]
    os.unlink(den.file(0))
    with pytest.raises(KeyboardInterrupt):
        den.store.save(TOKENS, 0, broken)
    with pytest.raises(EngineError, match="report"):
        den.store.save(TOKENS, 0, lambda box: den.truth.source(box).half())
    assert den.store.match(TOKENS) == 0


def test_everything_is_counted(den: Den) -> None:
    den.load()
    flip(den.file(4), 300, 1)
    den.load()
    den.save()
    counts = den.metrics.snapshot()
    assert counts["store.load_chunks"] == 8 + 4
    assert counts["store.save_chunks"] == 8 + 1
    assert counts["store.save_skipped"] == 7
    assert counts["store.fault.checksum"] == 1
    assert counts["store.load_misses"] == 1
    assert counts["store.save_bytes"] == sum(sizes(den)) + sizes(den)[4]


def test_a_gap_before_start_is_not_called_stored(
    den: Den, caplog: pytest.LogCaptureFixture
) -> None:
    den.file(1).unlink()
    assert den.store.save(TOKENS, 8, den.truth.source).stored is False
    assert "save from 0" in caplog.text
    assert den.store.save(TOKENS, 0, den.truth.source).stored is True


# --- several tiers ---


def test_the_nearest_tier_answers_and_the_far_one_fills_gaps(den: Den) -> None:
    near = MemoryTier()
    both = den.open([near, den.disk])
    den.open([near]).save(TOKENS[:16], 0, den.truth.source)
    assert both.match(TOKENS) == 29
    for path in (den.file(0), den.file(2)):
        path.unlink()  # near has them
    assert den.load(both).tokens == 29


def test_a_fault_in_the_near_tier_is_served_from_the_far_one(
    den: Den, caplog: pytest.LogCaptureFixture
) -> None:
    near = MemoryTier()
    both = den.open([FaultyTier(near, at({("read", 2): Trouble.FLIP})), den.disk])
    assert both.save(TOKENS, 0, den.truth.source).chunks == 8
    report = den.load(both)
    assert report.tokens == 29
    assert report.faults == (("checksum", den.keys[2]),)
    assert "checksum" in caplog.text
    assert near.usage().chunks == 7  # set aside in the tier that was bad, and only there
    assert den.disk.usage().chunks == 8


def test_a_dead_tier_is_asked_once_and_the_other_serves(
    den: Den, caplog: pytest.LogCaptureFixture
) -> None:
    dead = FaultyTier(MemoryTier(), lambda method, n: Trouble.RAISE)
    both = den.open([dead, den.disk])
    assert both.match(TOKENS) == 29
    assert den.load(both).tokens == 29
    assert [method for method, _, _ in dead.happened] == ["find", "find"]
    assert both.save(TOKENS, 0, den.truth.source)[:4] == (0, 0, 8, False)
    assert "made to fail" in caplog.text


def test_a_tier_that_dies_in_mid_save_is_left_out_for_the_rest(den: Den) -> None:
    near = FaultyTier(MemoryTier(), at({("write", 2): Trouble.RAISE}))
    far = MemoryTier(name="far")
    report = den.open([near, far]).save(TOKENS, 0, den.truth.source)
    assert (report.chunks, report.stored) == (2 + 8, False)
    assert den.load(den.open([far])).tokens == 29


def test_a_bad_chunk_that_cannot_be_set_aside_is_overwritten(den: Den) -> None:
    flip(den.file(2), 300, 1)
    stubborn = FaultyTier(den.disk, lambda m, n: Trouble.RAISE if m == "remove" else None)
    store = den.open([stubborn])
    assert den.load(store).tokens == 8
    assert store.match(TOKENS) == 8
    assert den.load(store).faults == ()  # known: not read again
    assert store.save(TOKENS, 8, den.truth.source).chunks == 1
    assert store.match(TOKENS) == den.load(store).tokens == 29


# --- budgets ---


def test_a_context_beyond_the_budget_keeps_its_beginning(
    den: Den, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    budget = sum(sizes(den)[:5]) * 16 // 15 + 16
    tier = DiskTier(tmp_path / "small", budget=budget, fsync=False)
    store = den.open([tier])
    for _ in range(2):
        report = store.save(TOKENS, 0, den.truth.source)
        assert not report.stored and store.match(TOKENS) == 16
    assert "budget" in caplog.text
    other = tuple(range(16))
    assert store.save(other, 0, den.truth.source).stored  # it makes room by last use
    assert store.match(other) == 16 and tier.usage().nbytes <= budget


def test_a_tier_that_refuses(den: Den, caplog: pytest.LogCaptureFixture) -> None:
    class Full(MemoryTier):
        def write(self, key: object, value: object) -> bool:  # type: ignore[override]
            return False

    report = den.open([Full()]).save(TOKENS, 0, den.truth.source)
    assert report[:4] == (0, 0, 7, False)  # one was tried
    assert caplog.text.count("no room") == 1
    assert den.metrics.snapshot()["store.refused.memory"] == 1


@pytest.mark.parametrize("percent", range(60, 160, 4))
def test_a_save_never_evicts_its_own_beginning(tmp_path: Path, percent: int) -> None:
    truth = Truth.of(GEOMETRY, 29)
    whole = 29 * GEOMETRY.bytes_per_token + 8 * OVERHEAD
    clock = Clock()
    tier = DiskTier(tmp_path, budget=whole * percent // 100, fsync=False, clock=clock)
    store = Store([tier], GEOMETRY, FINGERPRINT)
    for base in (100, 200, 0):
        clock.tick()
        tokens = range(base, base + 29)
        stored = store.save(tokens, 0, truth.source).stored
        clock.tick()
        held = store.match(tokens)
        assert stored == (held == 29) == (whole <= tier.usage().budget * 15 / 16)
        assert held >= 8
        assert store.load(tokens, 29, truth.sink).tokens == held


def test_two_contexts_that_do_not_fit_together_take_turns(tmp_path: Path) -> None:
    truth = Truth.of(GEOMETRY, 29)
    whole = 29 * GEOMETRY.bytes_per_token + 8 * OVERHEAD
    clock = Clock()
    tier = DiskTier(tmp_path, budget=whole * 3 // 2, fsync=False, clock=clock)
    store = Store([tier], GEOMETRY, FINGERPRINT)
    for base in (0, 100, 0, 100):
        tokens = range(base, base + 29)
        assert store.save(tokens, 0, truth.source).stored
        assert store.match(tokens) == 29
        clock.tick()


# --- logging ---


def test_a_log_and_counters_of_ones_own() -> None:
    log, metrics = logging.getLogger("mine"), Metrics()
    records: list[str] = []
    log.addFilter(lambda record: bool(records.append(record.getMessage())))

    class Dead(MemoryTier):
        def find(self, keys: object, *, touch: bool = False) -> list[bool]:
            raise TierError("gone.", hint="Start it.")

    store = Store([Dead()], GEOMETRY, FINGERPRINT, metrics=metrics, log=log)
    assert store.match(TOKENS) == 0
    assert records == ["tier memory: gone. Start it."]
    assert metrics.snapshot() == {"store.miss.tier_failed": 1, "store.tier_errors.memory": 1}


def test_every_fault_has_a_test_of_its_own() -> None:
    folder = Path(__file__).parents[1] / "attacks"
    attacks = "".join(path.read_text() for path in folder.glob("test_*.py"))
    assert not [fault for fault in Fault if f"Fault.{fault.name}" not in attacks]
