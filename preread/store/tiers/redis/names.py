"""What chunks are called in Redis, and how long they stay.

    prd:{<64 hex digits>}           a chunk
    prd:aside:{<64 hex digits>}     the same, set aside because it failed
    prd:share:{<zeros>}:<bytes>     somebody keeps every owner so many bytes, see eviction.Budget

The braces are a hash tag: in a cluster both names of a chunk lie on one slot, so that it can be
renamed.
"""

from __future__ import annotations

import re

from preread.store.tiers.base import ChunkKey

EVERYTHING = b"prd:*"
JITTER = 8  # a chunk stays up to an eighth longer than its time to live
NOBODY = ChunkKey(bytes(32))  # whose homes keep what is said of all chunks
_SHARE = re.compile(rb"prd:share:\{0{64}\}:(\d{1,18})")
_NAME = re.compile(rb"prd:(aside:)?\{([0-9a-f]{64})\}")


def chunk_name(key: ChunkKey) -> bytes:
    return b"prd:{%s}" % key.hex().encode()


def aside_name(key: ChunkKey) -> bytes:
    return b"prd:aside:{%s}" % key.hex().encode()


def share_name(share: int) -> bytes:
    return b"prd:share:{%s}:%d" % (NOBODY.hex().encode(), share)


def parsed_share(name: bytes) -> int:
    """0 for any other name."""
    match = _SHARE.fullmatch(name)
    return int(match[1]) if match else 0


def parsed(name: bytes) -> tuple[ChunkKey, bool] | None:
    """(key, whether it is set aside); None: not ours."""
    if (match := _NAME.fullmatch(name)) is None:
        return None
    return ChunkKey(bytes.fromhex(match[2].decode())), match[1] is not None


def residency_ms(key: ChunkKey, ttl_s: float) -> int:
    """How long a chunk stays after its last use. What was written together does not expire
    together; yet the same key always gets the same time, so that the time that is left tells when
    it was used last."""
    spread = int.from_bytes(key[:2], "big") / (1 << 16)
    return int(ttl_s * 1000 * (1 + spread / JITTER))
