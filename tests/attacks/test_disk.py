"""Everything that can be done to the files of a store: always a miss with its cause logged, never
an exception, never wrong bytes (Den.load compares every tensor with the truth)."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from preread.store.chunk import Fault
from preread.store.keys import DTYPES, Geometry, fingerprint
from preread.store.store import Store
from preread.store.tiers.disk import DiskTier
from tests.attacks.tools import (
    CHECKSUM,
    FIELDS,
    FINGERPRINT,
    GEOMETRY,
    HEADER,
    Den,
    Truth,
    draws,
    exchange,
    flip,
    forge,
    truncate,
)

FIELD_FAULTS = {
    "magic": Fault.BAD_MAGIC,
    "flags": Fault.BAD_HEADER,
    "header_length": Fault.BAD_HEADER,
    "reserved_a": Fault.BAD_HEADER,
    "reserved_b": Fault.BAD_HEADER,
}
FORGERIES = [
    ("magic", b"PREREAD!", Fault.BAD_MAGIC),
    ("version", 0, Fault.OLD_VERSION),
    ("version", 2, Fault.FUTURE_VERSION),
    ("version", 65535, Fault.FUTURE_VERSION),
    ("header_length", 128, Fault.BAD_HEADER),
    ("flags", 1, Fault.SEALED),
    ("flags", 2, Fault.BAD_HEADER),
    ("flags", 3, Fault.BAD_HEADER),
    ("payload_length", 0, Fault.WRONG_LENGTH),
    ("payload_length", 511, Fault.WRONG_LENGTH),
    ("payload_length", 513, Fault.TRUNCATED),
    ("payload_length", 2**64 - 1, Fault.TRUNCATED),
    ("token_start", 7, Fault.OTHER_BOX),
    ("token_end", 2**32 - 1, Fault.OTHER_BOX),
    ("layer_start", 1, Fault.OTHER_BOX),
    ("layer_end", 0, Fault.OTHER_BOX),
    ("head_start", 1, Fault.OTHER_BOX),
    ("head_end", 1, Fault.OTHER_BOX),
    ("head_dim", 8, Fault.OTHER_SHAPE),
    ("dtype", DTYPES["bfloat16"][0], Fault.OTHER_DTYPE),
    ("dtype", 99, Fault.OTHER_DTYPE),
    ("codec", 0, Fault.OTHER_CODEC),
    ("codec", 2, Fault.OTHER_CODEC),
    ("reserved_a", 1, Fault.BAD_HEADER),
    ("reserved_b", 1, Fault.BAD_HEADER),
    ("key", bytes(32), Fault.OTHER_KEY),
    ("fingerprint", bytes(32), Fault.FOREIGN_FINGERPRINT),
    ("tenant", bytes(32), Fault.OTHER_TENANT),
    ("chain", bytes(32), Fault.OTHER_CHAIN),
]


def spoiled(den: Den, n: int, log: list[logging.LogRecord]) -> str:
    """Load with box n spoiled, then put the file back. The reason."""
    report = den.load()
    assert report.tokens == n // 2 * 8
    ((reason, key),) = report.faults
    assert key == den.keys[n] and key in log[-1].getMessage() and reason in log[-1].getMessage()
    log.clear()
    return reason


def test_unharmed(den: Den, log: list[logging.LogRecord]) -> None:
    assert den.load().tokens == len(den.tokens) and den.load().faults == ()
    assert not log


# --- bytes ---


@pytest.mark.parametrize("name", FIELDS)
def test_every_bit_of_the_header(den: Den, log: list[logging.LogRecord], name: str) -> None:
    original = den.file(2).read_bytes()
    offset, size = FIELDS[name]
    for bit in range(8 * size):
        flip(den.file(2), offset + bit // 8, 1 << bit % 8)
        reason = spoiled(den, 2, log)
        den.file(2).write_bytes(original)
        if name == "version":
            assert reason in (Fault.OLD_VERSION, Fault.FUTURE_VERSION)
        elif name == "payload_length":
            assert reason in (Fault.TRUNCATED, Fault.WRONG_LENGTH)
        elif name == "flags" and bit == 0:
            assert reason == Fault.SEALED
        else:
            assert reason == FIELD_FAULTS.get(name, Fault.CHECKSUM)
    assert den.load().tokens == len(den.tokens)


def test_a_thousand_random_bytes(den: Den, log: list[logging.LogRecord]) -> None:
    draw = draws("bytes")
    originals = [den.file(n).read_bytes() for n in range(8)]
    for _ in range(1000):
        n = draw.randrange(8)
        flip(den.file(n), draw.randrange(len(originals[n])), draw.randrange(1, 256))
        spoiled(den, n, log)
        den.file(n).write_bytes(originals[n])
    assert den.load().tokens == len(den.tokens)
    assert sum(v for k, v in den.metrics.snapshot().items() if k.startswith("store.fault.")) == 1000


def test_every_structural_boundary_and_random_lengths(
    den: Den, log: list[logging.LogRecord]
) -> None:
    original = den.file(4).read_bytes()
    size, draw = len(original), draws("lengths")
    edges = {0, 1, *(o for o, _ in FIELDS.values()), HEADER, HEADER + 1, size - CHECKSUM, size - 1}
    edges |= {HEADER + 512 * k for k in range(1, 2)} | {edge - 1 for edge in edges if edge}
    for length in [*sorted(edges - {size}), *(draw.randrange(size) for _ in range(200))]:
        truncate(den.file(4), length)
        assert spoiled(den, 4, log) == Fault.TRUNCATED
        den.file(4).write_bytes(original)
    for extra in (1, 16, 4096):
        den.file(4).write_bytes(original + bytes(extra))
        assert spoiled(den, 4, log) == Fault.WRONG_LENGTH
        den.file(4).write_bytes(original)


@pytest.mark.parametrize(("name", "value", "reason"), FORGERIES)
def test_forged_with_a_valid_checksum(
    den: Den, log: list[logging.LogRecord], name: str, value: int | bytes, reason: Fault
) -> None:
    forge(den.file(2), name, value)
    den.survives([2], reason, log)


# --- whole chunks that are somebody else's ---


@pytest.mark.parametrize(
    ("one", "two", "reason"),
    [
        (0, 2, Fault.OTHER_CHAIN),
        (3, 7, Fault.OTHER_CHAIN),
        (2, 4, Fault.OTHER_CHAIN),
        (0, 1, Fault.OTHER_BOX),
    ],
)
def test_two_chunks_swapped(
    den: Den, log: list[logging.LogRecord], one: int, two: int, reason: Fault
) -> None:
    exchange(den.file(one), den.file(two))
    den.survives([one, two], reason, log)


def foreign(den: Den, root: Path, store: Store) -> None:
    """Put another store's whole chunks under our names."""
    theirs = store.save(den.tokens, 0, Truth.of(GEOMETRY, 29, seed=9).source).keys
    for ours, other in zip(den.keys, theirs, strict=True):
        path = root / "chunks" / other[0] / other[1] / f"{other}.kv"
        target = den.root / "chunks" / ours[0] / ours[1] / f"{ours}.kv"
        shutil.copy(path, target)


def test_another_models_chunks(den: Den, log: list[logging.LogRecord], tmp_path: Path) -> None:
    tier = DiskTier(tmp_path / "b", fsync=False)
    foreign(den, tmp_path / "b", Store([tier], GEOMETRY, fingerprint({"weights": "theirs"})))
    den.survives(range(8), Fault.FOREIGN_FINGERPRINT, log)


def test_another_tenants_chunks(den: Den, log: list[logging.LogRecord], tmp_path: Path) -> None:
    tier = DiskTier(tmp_path / "b", fsync=False)
    foreign(den, tmp_path / "b", Store([tier], GEOMETRY, FINGERPRINT, tenant="mallory"))
    den.survives(range(8), Fault.OTHER_TENANT, log)


def test_another_tenant_finds_nothing(den: Den) -> None:
    other = den.open([den.disk], tenant="mallory")
    assert other.match(den.tokens) == 0
    assert other.load(den.tokens, 29, den.truth.sink).tokens == 0
    assert not set(other.keys(den.tokens)) & set(den.keys)


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (Geometry(3, 2, 4, "float16", 8, GEOMETRY.chunk_bytes // 2 + 136), Fault.OTHER_DTYPE),
        (Geometry(3, 2, 8, "float32", 8, 2048 + 272), Fault.OTHER_SHAPE),
    ],
)
def test_same_model_other_dtype_or_shape(
    den: Den, log: list[logging.LogRecord], tmp_path: Path, theirs: Geometry, reason: Fault
) -> None:
    """Even under the very same keys and fingerprint: dtype and head size are judged themselves."""
    tier = DiskTier(den.root, fsync=False)
    den.disk.remove([e.key for e in den.disk.scan()])
    truth = Truth.of(theirs, len(den.tokens))
    report = Store([tier], theirs, FINGERPRINT).save(den.tokens, 0, truth.source)
    assert report.keys == den.keys
    log.clear()
    den.survives(range(8), reason, log)
