from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from preread.metrics import Metrics
from preread.store.keys import fingerprint
from preread.store.store import Store
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.store.upkeep import Upkeep
from preread.testing.faulty import FaultyTier, Trouble, at
from tests.attacks.tools import GEOMETRY, Den, exchange, flip, forge, truncate

HOUR = 3600.0


@pytest.fixture
def den(tmp_path: Path) -> Den:
    return Den(tmp_path / "kv")


def upkeep(*tiers: DiskTier | MemoryTier | FaultyTier) -> Upkeep:
    return Upkeep(tiers, Metrics())


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


# --- verify ---


def test_all_is_well(den: Den) -> None:
    report = den.store.verify()
    assert (report.checked, report.ok, report.missing, report.faults) == (8, 8, (), {})
    assert report.nbytes == den.disk.usage().nbytes


def test_it_needs_no_model_and_knows_every_models_chunks(den: Den) -> None:
    other = Store([den.disk], GEOMETRY, fingerprint({"weights": "theirs"}), tenant="them")
    other.save(den.tokens, 0, den.truth.source)
    assert upkeep(den.disk).verify().ok == 16


def test_bad_chunks_are_named_counted_and_set_aside(den: Den) -> None:
    flip(den.file(0), 300, 1)
    truncate(den.file(1), 100)
    truncate(den.file(2), 400)
    exchange(den.file(3), den.file(5))
    den.file(6).unlink()
    den.file(6).mkdir()
    os.unlink(den.file(7))
    report = den.store.verify(den.keys)
    assert (report.checked, report.ok) == (7, 1)
    assert report.faults == {"checksum": 1, "truncated": 2, "other_key": 2, "unreadable": 1}
    assert report.missing == (den.keys[7],)
    assert {key for _, key, _ in report.bad} == {den.keys[n] for n in (0, 1, 2, 3, 5, 6)}
    assert den.store.verify().checked == 1
    den.load()
    den.save()
    assert den.store.verify(den.keys).ok == 8


def test_a_rehashed_forgery_of_what_a_key_covers_is_seen(den: Den) -> None:
    forge(den.file(0), "chain", bytes(32))
    forge(den.file(1), "layer_end", 2)
    forge(den.file(2), "codec", 7)
    assert den.store.verify().faults == {"other_key": 2, "other_codec": 1}


def test_only_the_keys_asked_for(den: Den) -> None:
    flip(den.file(0), 300, 1)
    report = den.store.verify(den.keys[2:4])
    assert (report.checked, report.ok) == (2, 2)
    assert upkeep(den.disk).verify(["ab" * 32]).missing == ("ab" * 32,)


def test_shallow_reads_nothing(den: Den) -> None:
    flip(den.file(0), 300, 1)
    truncate(den.file(1), 10)
    tier = FaultyTier(den.disk, at({("read", 0): Trouble.RAISE}))
    report = upkeep(tier).verify(deep=False)
    assert report.faults == {"truncated": 1} and report.ok == 7 and not tier.happened


def test_a_newer_formats_chunks_are_left_alone(den: Den) -> None:
    forge(den.file(0), "version", 2)
    for _ in range(2):
        assert den.store.verify().faults == {"future_version": 1}
    assert den.file(0).exists()


def test_an_unreadable_chunk(den: Den) -> None:
    with den.file(0).open("r+b") as file:
        file.truncate(1 << 40)
    assert den.store.verify().faults == {"unreadable": 1}
    assert den.store.verify().faults == {}


def test_a_dead_tier_is_reported_and_the_others_are_verified(den: Den) -> None:
    dead = FaultyTier(MemoryTier(name="dead"), at({("scan", 0): Trouble.RAISE}))
    report = upkeep(dead, den.disk).verify()
    assert report.ok == 8 and len(report.errors) == 1 and "dead" in report.errors[0]


# --- sweep ---


def test_what_a_catalog_refers_to_stays_however_old(den: Den) -> None:
    for n in range(8):
        age(den.file(n), 2 * HOUR)
    live = frozenset(den.keys[:3])
    gone = sum(den.file(n).stat().st_size for n in range(3, 8))
    report = den.store.sweep(live, HOUR)
    assert (report.removed, report.nbytes, report.kept) == (5, gone, 3)
    assert [den.file(n).exists() for n in range(8)] == [True] * 3 + [False] * 5


def test_what_was_used_lately_stays_a_while(den: Den) -> None:
    for n in range(8):
        age(den.file(n), 2 * HOUR)
    den.store.load(den.tokens, 16, den.truth.sink)
    assert den.store.sweep(frozenset(), HOUR)[:3:2] == (4, 4)
    assert den.store.sweep(frozenset(), 0).removed == 4


def test_debris_goes_too(den: Den) -> None:
    flip(den.file(0), 300, 1)
    den.load()
    temp = den.root / "tmp" / "1.2.3"
    temp.write_bytes(b"half")
    age(temp, HOUR)
    assert den.store.sweep(frozenset(den.keys), HOUR).debris == 1  # the temp file
    assert den.store.sweep(frozenset(den.keys), 0).debris == 1  # the quarantined chunk
    assert list((den.root / "quarantine").iterdir()) == list((den.root / "tmp").iterdir()) == []
    assert den.store.sweep(frozenset(den.keys), 0)[:4] == (0, 0, 7, 0)


def test_a_tier_that_cannot_be_swept_is_reported(den: Den) -> None:
    dead = FaultyTier(MemoryTier(name="dead"), at({("scan", 0): Trouble.RAISE}))
    report = upkeep(dead, den.disk).sweep(frozenset(), 0)
    assert report.removed == 8 and "dead" in report.errors[0]
