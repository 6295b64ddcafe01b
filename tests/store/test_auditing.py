"""Verifying as a load would: what `verify` can see, and what only who has tokens and keys can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash

from preread.store.auditing import together
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers.disk import DiskTier
from preread.testing.faulty import FaultyTier, Trouble, at
from tests.attacks.tools import FINGERPRINT, GEOMETRY, HEADER, Den, flip, forge

KEY = Keyring.parse("ab12" * 16, "the test")


@pytest.fixture
def den(tmp_path: Path) -> Den:
    return Den(tmp_path / "kv")


def sealed(den: Den, folder: Path) -> tuple[Store, DiskTier]:
    """The same KV, sealed, in a tier of its own."""
    tier = DiskTier(folder, fsync=False)
    store = Store([tier], GEOMETRY, FINGERPRINT, keyring=KEY)
    store.save(den.tokens, 0, den.truth.source)
    return store, tier


def rehash(path: Path) -> None:
    """The checksum that anybody can make, of a sealed value."""
    data = bytearray(path.read_bytes())
    data[240:HEADER] = xxhash.xxh3_128(bytes(data[:240] + data[HEADER:])).digest()
    path.write_bytes(data)


def test_all_is_well(den: Den, tmp_path: Path) -> None:
    store, _ = sealed(den, tmp_path / "sealed")
    for one in (den.store, store):
        report = one.audit(den.tokens)
        assert (report.checked, report.ok, report.missing, report.bad) == (8, 8, (), ())
    assert den.store.audit(den.tokens).nbytes == den.disk.usage().nbytes


def test_a_seal_that_was_tampered_with_by_who_knows_the_format(den: Den, tmp_path: Path) -> None:
    store, tier = sealed(den, tmp_path / "sealed")
    path = sorted((tmp_path / "sealed" / "chunks").rglob("*.kv"))[0]
    flip(path, HEADER + 5, 1)
    rehash(path)
    assert store.verify().ok == 8, "without the key nothing is wrong with it"
    report = store.audit(den.tokens)
    assert (report.ok, report.faults) == (7, {"broken_seal": 1}) and report.bad[0][0] == tier.name
    assert store.audit(den.tokens).missing == (report.bad[0][1],), "it was set aside"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("fingerprint", bytes(32), "foreign_fingerprint"),
        ("tenant", bytes(32), "other_tenant"),
        ("head_dim", 2, "other_shape"),
        ("dtype", 2, "other_dtype"),
    ],
)
def test_fields_that_no_name_covers(den: Den, name: str, value: bytes | int, reason: str) -> None:
    forge(den.file(0), name, value)
    assert den.store.verify().ok == 8
    assert den.store.audit(den.tokens).faults == {reason: 1}


def test_only_these_tokens_and_what_is_not_there_is_said(den: Den) -> None:
    den.file(3).unlink()
    report = den.store.audit(den.tokens)
    assert (report.checked, report.missing) == (7, (den.keys[3],))
    other = den.store.audit(np.asarray(den.tokens)[::-1].copy())
    assert (other.checked, len(other.missing)) == (0, 8)


def test_another_key_holds_none_of_it(den: Den, tmp_path: Path) -> None:
    _, tier = sealed(den, tmp_path / "sealed")
    other = Keyring.parse("cd34" * 16, "the test")
    store = Store([tier], GEOMETRY, FINGERPRINT, keyring=other)
    assert (store.audit(den.tokens).checked, tier.usage().chunks) == (0, 8)


def test_a_tier_that_fails_is_said_and_the_others_are_read(den: Den) -> None:
    faulty = FaultyTier(den.disk, at({("find", 0): Trouble.RAISE}))
    store = Store([faulty, den.disk], GEOMETRY, FINGERPRINT)
    report = store.audit(den.tokens)
    assert len(report.errors) == 1 and report.ok == 8 and not report.missing


def test_reports_add_up(den: Den) -> None:
    flip(den.file(0), 300, 1)
    one, two = den.store.audit(den.tokens), den.store.audit(den.tokens)
    both = together([one, two])
    assert (both.checked, both.ok, both.faults) == (15, 14, {"checksum": 1})
    assert (both.missing, both.bad) == (two.missing, one.bad)
    assert together([]).checked == 0
