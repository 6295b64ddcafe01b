from __future__ import annotations

import pytest

from preread.store.chunk import (
    HEADER_BYTES,
    ChunkFault,
    ChunkHeader,
    Fault,
    pack,
    read_header,
    unpack,
    verify,
    verify_key,
)
from preread.store.keys import OVERHEAD, Box, chunk_key

BOX = Box(256, 300, 2, 4, 0, 2)
PAYLOAD = bytes(range(256)) * 3
CHAIN = b"c" * 32
HEADER = ChunkHeader(
    b"f" * 32, b"t" * 32, CHAIN, BOX, 64, 3, 1, len(PAYLOAD), chunk_key(CHAIN, BOX, "raw")
)


def value() -> bytearray:
    return bytearray(b"".join(pack(HEADER, memoryview(PAYLOAD))))


def fault(of: bytearray, expected: ChunkHeader = HEADER) -> Fault:
    with pytest.raises(ChunkFault) as caught:
        unpack(of, expected)
    return caught.value.reason


def test_round_trip() -> None:
    assert unpack(value(), HEADER) == PAYLOAD
    assert len(value()) == len(PAYLOAD) + OVERHEAD
    verify_key(verify(value())[0], HEADER.key)


def test_nothing_is_copied() -> None:
    payload = memoryview(bytearray(PAYLOAD))
    assert pack(HEADER, payload)[1] is payload
    whole = value()
    unpack(whole, HEADER)[0] = 77
    assert whole[HEADER_BYTES] == 77


def test_a_payload_of_another_length_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        pack(HEADER, memoryview(PAYLOAD[:-1]))


def test_the_header_is_readable_alone() -> None:
    assert read_header(value()[:HEADER_BYTES]) == HEADER


@pytest.mark.parametrize(
    ("field", "other", "reason"),
    [
        ("fingerprint", b"x" * 32, Fault.FOREIGN_FINGERPRINT),
        ("tenant", b"x" * 32, Fault.OTHER_TENANT),
        ("chain", b"x" * 32, Fault.OTHER_CHAIN),
        ("box", BOX._replace(layer_end=5), Fault.OTHER_BOX),
        ("head_dim", 32, Fault.OTHER_SHAPE),
        ("dtype", 2, Fault.OTHER_DTYPE),
        ("codec", 2, Fault.OTHER_CODEC),
        ("payload_nbytes", 9, Fault.WRONG_LENGTH),
        ("key", b"x" * 32, Fault.OTHER_KEY),
    ],
)
def test_every_field_must_be_as_expected(field: str, other: object, reason: Fault) -> None:
    assert fault(value(), HEADER._replace(**{field: other})) is reason  # type: ignore[arg-type]


def test_every_field_is_compared() -> None:
    """A field added to the header and forgotten here would be believed."""
    assert set(ChunkHeader._fields) == {
        "fingerprint", "tenant", "chain", "box", "head_dim", "dtype", "codec", "payload_nbytes",
        "key",
    }  # fmt: skip


@pytest.mark.parametrize("field", ["chain", "box", "key", "codec"])
def test_a_name_must_follow_from_the_content(field: str) -> None:
    other = {"chain": b"x" * 32, "box": BOX._replace(token_end=301), "key": b"x" * 32, "codec": 9}
    header = HEADER._replace(**{field: other[field]})  # type: ignore[arg-type]
    with pytest.raises(ChunkFault) as caught:
        verify_key(header, HEADER.key)
    assert caught.value.reason is (Fault.OTHER_CODEC if field == "codec" else Fault.OTHER_KEY)


def test_stored_under_another_name() -> None:
    with pytest.raises(ChunkFault):
        verify_key(HEADER, chunk_key(CHAIN, BOX, "fp8"))
