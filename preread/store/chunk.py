"""The wire format of one chunk: fixed header, payload, checksum. Byte by byte in docs/format.md.

A chunk describes itself wholly and nothing it says is believed: the reader says what it expects
and every field must agree. Sizes in bytes, integers little-endian and unsigned.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import xxhash

from preread.store.keys import CODECS, OVERHEAD, Box, chunk_key
from preread.store.tiers.base import ChunkKey

MAGIC = b"\x89PRD\r\n\x1a\n"  # as in PNG: shows 7-bit and line-end damage at once
VERSION = 1
HEADER_BYTES = 256
SEALED = 1  # the flag of a sealed chunk, see seal.py
CHECKSUM_BYTES = OVERHEAD - HEADER_BYTES

# magic, version, header length, flags, payload length; a plain header goes on with 6 x range,
# head_dim, dtype, codec, reserved, key, fingerprint, tenant, chain, reserved
OPENING = struct.Struct("<8sHHIQ")
_HEADER = struct.Struct("<8sHHIQ6IIHH8s32s32s32s32s64s")
_DESCRIPTION = struct.Struct("<6IIHH32s32s32s")
_RESERVED_A, _RESERVED_B = bytes(8), bytes(64)


class Fault(StrEnum):
    """Why a chunk was not used."""

    TRUNCATED = "truncated"
    BAD_MAGIC = "bad_magic"
    OLD_VERSION = "old_version"
    FUTURE_VERSION = "future_version"
    BAD_HEADER = "bad_header"  # header length, flags or reserved bytes
    WRONG_LENGTH = "wrong_length"
    CHECKSUM = "checksum"
    FOREIGN_FINGERPRINT = "foreign_fingerprint"
    OTHER_TENANT = "other_tenant"
    OTHER_CHAIN = "other_chain"  # other tokens came before
    OTHER_BOX = "other_box"
    OTHER_SHAPE = "other_shape"  # head_dim
    OTHER_DTYPE = "other_dtype"
    OTHER_CODEC = "other_codec"
    OTHER_KEY = "other_key"
    PLAIN = "plain"  # where a sealed one was expected
    SEALED = "sealed"  # where a plain one was expected
    UNKNOWN_KEY = "unknown_key"  # sealed with a key that we do not have
    BROKEN_SEAL = "broken_seal"  # damaged, forged, another chunk's, tenant's or epoch's
    UNREADABLE = "unreadable"  # the tier could not read this one value


class ChunkFault(Exception):
    """A chunk is not what it must be. Internal: becomes a miss, never reaches a user."""

    def __init__(self, reason: Fault) -> None:
        self.reason = reason
        super().__init__(reason.value)


class ChunkHeader(NamedTuple):
    """What a chunk says about itself; given to `unpack` it is what the reader expects. dtype and
    codec are codes (see keys.DTYPES, keys.CODECS); payload_nbytes counts encoded bytes."""

    fingerprint: bytes
    tenant: bytes
    chain: bytes
    box: Box
    head_dim: int
    dtype: int
    codec: int
    payload_nbytes: int
    key: ChunkKey


# Field by field, the fault when it differs from what was expected; in the order they are judged.
_BLAME = (
    ("fingerprint", Fault.FOREIGN_FINGERPRINT),
    ("tenant", Fault.OTHER_TENANT),
    ("chain", Fault.OTHER_CHAIN),
    ("box", Fault.OTHER_BOX),
    ("head_dim", Fault.OTHER_SHAPE),
    ("dtype", Fault.OTHER_DTYPE),
    ("codec", Fault.OTHER_CODEC),
    ("payload_nbytes", Fault.WRONG_LENGTH),
    ("key", Fault.OTHER_KEY),
)


def pack(header: ChunkHeader, payload: memoryview) -> tuple[bytes, memoryview, bytes]:
    """Header, payload (not copied) and checksum: the parts of one value for `Tier.write`."""
    assert payload.nbytes == header.payload_nbytes, (payload.nbytes, header)
    head = head_of(header)
    return head, payload, _checksum(head, payload)


def head_of(header: ChunkHeader) -> bytes:
    """What a plain chunk begins with."""
    return _HEADER.pack(
        MAGIC,
        VERSION,
        HEADER_BYTES,
        0,
        header.payload_nbytes,
        *header.box,
        header.head_dim,
        header.dtype,
        header.codec,
        _RESERVED_A,
        header.key,
        header.fingerprint,
        header.tenant,
        header.chain,
        _RESERVED_B,
    )


def described(header: ChunkHeader) -> bytes:
    """What a plain header says of its chunk and a sealed one hides: box, head_dim, dtype, codec,
    fingerprint, tenant, chain; from these follows the key."""
    numbers = *header.box, header.head_dim, header.dtype, header.codec
    return _DESCRIPTION.pack(*numbers, header.fingerprint, header.tenant, header.chain)


def opening(value: bytes | bytearray | memoryview) -> tuple[int, int]:
    """(flags, payload bytes): what plain and sealed chunks begin with. Raises ChunkFault."""
    if len(value) < HEADER_BYTES:
        raise ChunkFault(Fault.TRUNCATED)
    magic, version, length, flags, payload_nbytes = OPENING.unpack_from(value)
    if magic != MAGIC:
        raise ChunkFault(Fault.BAD_MAGIC)
    if version != VERSION:
        raise ChunkFault(Fault.FUTURE_VERSION if version > VERSION else Fault.OLD_VERSION)
    if length != HEADER_BYTES:
        raise ChunkFault(Fault.BAD_HEADER)
    return flags, payload_nbytes


def whole(nbytes: int, payload_nbytes: int) -> None:
    """Raises ChunkFault unless a value of so many bytes is exactly as long as its header says."""
    size = HEADER_BYTES + payload_nbytes + CHECKSUM_BYTES
    if nbytes != size:
        raise ChunkFault(Fault.TRUNCATED if nbytes < size else Fault.WRONG_LENGTH)


def read_header(value: bytes | bytearray | memoryview) -> ChunkHeader:
    """The header alone: `value` may end after its 256 bytes. Not verified. Raises ChunkFault."""
    flags, payload_nbytes = opening(value)
    if flags == SEALED:
        raise ChunkFault(Fault.SEALED)
    rest = _HEADER.unpack_from(value)[5:]
    head_dim, dtype, codec, reserved_a, key, fingerprint, tenant, chain, reserved_b = rest[6:]
    if (flags, reserved_a, reserved_b) != (0, _RESERVED_A, _RESERVED_B):
        raise ChunkFault(Fault.BAD_HEADER)
    box = Box(*rest[:6])
    return ChunkHeader(
        fingerprint, tenant, chain, box, head_dim, dtype, codec, payload_nbytes, ChunkKey(key)
    )


def verify(value: bytearray | memoryview) -> tuple[ChunkHeader, memoryview]:
    """Header and payload (a view into `value`) of a whole, undamaged chunk: length and checksum are
    right. Whether it is the chunk that was asked for is for `verify_key` and `unpack`. Raises
    ChunkFault."""
    view = memoryview(value)
    header = read_header(view)
    whole(len(view), header.payload_nbytes)
    payload = view[HEADER_BYTES:-CHECKSUM_BYTES]
    if _checksum(view[:HEADER_BYTES], payload) != view[-CHECKSUM_BYTES:]:
        raise ChunkFault(Fault.CHECKSUM)
    return header, payload


def verify_key(header: ChunkHeader, key: ChunkKey) -> None:
    """The chunk stored under `key` was made for it: its own chain, box and codec give that key.
    Needs neither model nor tokens. Raises ChunkFault."""
    codec = next((name for name, code in CODECS.items() if code == header.codec), None)
    if codec is None:
        raise ChunkFault(Fault.OTHER_CODEC)
    if not key == header.key == chunk_key(header.chain, header.box, codec):
        raise ChunkFault(Fault.OTHER_KEY)


def unpack(value: bytearray | memoryview, expected: ChunkHeader) -> memoryview:
    """The payload (a view into `value`), if every field is as expected. Raises ChunkFault."""
    header, payload = verify(value)
    _agree(header, expected)
    return payload


class Parts:
    """A value that comes in parts, told of them as soon as they lie where they are to be used and
    are in the processor's cache. `judge` is then what `unpack` is of a whole one."""

    __slots__ = ("_digest", "_expected", "_nbytes", "head", "tail")

    def __init__(self, expected: ChunkHeader) -> None:
        self.head = memoryview(bytearray(HEADER_BYTES))
        self.tail = memoryview(bytearray(CHECKSUM_BYTES))
        self._expected = expected
        self._digest = xxhash.xxh3_128()
        self._nbytes = 0

    def add(self, parts: Sequence[memoryview], nbytes: int) -> None:
        """So many bytes in these parts. The header is the first of all, the checksum none."""
        update = self._digest.update
        for part in parts:
            update(part)
        self._nbytes += nbytes

    def judge(self) -> None:
        """Raises ChunkFault."""
        expected = self._expected
        if self.head == head_of(expected):  # no need to read field by field
            header = expected
        else:
            header = read_header(self.head)
        whole(self._nbytes + CHECKSUM_BYTES, header.payload_nbytes)
        if self._digest.digest() != self.tail:
            raise ChunkFault(Fault.CHECKSUM)
        _agree(header, expected)


def _agree(header: ChunkHeader, expected: ChunkHeader) -> None:
    if header != expected:
        raise ChunkFault(
            next(f for name, f in _BLAME if getattr(header, name) != getattr(expected, name))
        )


def _checksum(header: bytes | memoryview, payload: memoryview) -> bytes:
    digest = xxhash.xxh3_128(header)
    digest.update(payload)
    return digest.digest()
