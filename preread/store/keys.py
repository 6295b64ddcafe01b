"""Identity is content: fingerprints, the token chain, boxes and the keys of chunks.

A key is SHA-256 over what a chunk holds: the chain digest of all tokens up to its end (which starts
from fingerprint and tenant), its box and its codec. Never a name, a host, a rank or a process seed.
The exact bytes that are hashed are in docs/format.md; a golden test pins them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from preread.errors import ConfigError, RequestError
from preread.store.tiers.base import MAX_VALUE_BYTES, ChunkKey
from preread.types import Fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tokens: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]

# Bumped by hand when the same weights and tokens come to mean other KV: another RoPE convention,
# order inside a head or place of a norm. Bumping it empties everybody's cache.
KV_MEANING = 1

# name -> (code in the header, bytes per element)
DTYPES: Mapping[str, tuple[int, int]] = {"float32": (1, 4), "float16": (2, 2), "bfloat16": (3, 2)}
# name (in the key) -> code in the header; all but raw lose something, see codec.py
CODECS: Mapping[str, int] = {"raw": 1, "fp8": 2, "int8": 3}

# Not a power of two: sizes of KV are, so that with 256 tokens header and checksum would always be
# what is too much for a size class, and half of it would stay empty.
CHUNK_TOKENS = 248
OVERHEAD = 256 + 16  # bytes of header and checksum around a payload, see chunk.py


def prefixed(data: bytes) -> bytes:
    """Length as u32, then the bytes: what is joined so has one reading."""
    return len(data).to_bytes(4, "little") + data


_FINGERPRINT = prefixed(b"preread/fingerprint/1")
_TENANT = prefixed(b"preread/tenant/1")
_SHARED = prefixed(b"preread/shared/1")
_CHAIN = prefixed(b"preread/chain/1")
_LINK = prefixed(b"preread/link/1")
_KEY = prefixed(b"preread/key/1")
_BOX = struct.Struct("<6I")
_SPAN, _CELL = struct.Struct("<2I"), struct.Struct("<4I")  # a box in two parts
_EPOCHS = struct.Struct("<2Q")


def _tagged(value: str | int | float | bool) -> bytes:
    if isinstance(value, bool):  # before int: True is an int too
        return b"b" + (b"\1" if value else b"\0")
    if isinstance(value, int):
        return b"i" + prefixed(str(value).encode())
    if isinstance(value, float):
        return b"f" + struct.pack("<d", value)
    return b"s" + prefixed(value.encode())


def fingerprint(parts: Mapping[str, str | int | float | bool]) -> Fingerprint:
    """64 hex digits naming everything that makes KV what it is, KV_MEANING included.

    parts: digest of the weights, layers, RoPE, dtype … Order does not matter; a name, a type or a
    value that differs gives another fingerprint (1, 1.0, True and "1" are four values).
    """
    digest = sha256(_FINGERPRINT + _tagged(KV_MEANING))
    for name, value in sorted(parts.items()):
        digest.update(prefixed(name.encode()) + _tagged(value))
    return Fingerprint(digest.hexdigest())


def tenant_digest(tenant: str, *, shared: bool = False) -> bytes:
    """32 bytes that stand for a tenant on every medium; the name itself is never written. shared:
    the name is of a namespace that tenants share on purpose; no tenant's digest equals one."""
    return sha256((_SHARED if shared else _TENANT) + tenant.encode()).digest()


class Epochs(NamedTuple):
    """How often everything of a tenant, and of a model (the tenant's and everybody's, added up),
    was declared void (see Catalog.bump). Part of every chain: a bump makes all chunks written
    before it unreachable at once."""

    tenant: int = 0
    model: int = 0

    @classmethod
    def never(cls) -> Epochs:
        """Nothing was ever declared void."""
        return cls()


class Box(NamedTuple):
    """What one chunk holds: tokens [a, b) x layers [i, j) x KV heads [g, h)."""

    token_start: int
    token_end: int
    layer_start: int
    layer_end: int
    head_start: int
    head_end: int

    @property
    def cell(self) -> tuple[int, int, int, int]:
        """Layers [i, j) and KV heads [g, h)."""
        return self[2:]

    def shape(self, head_dim: int) -> tuple[int, int, int, int, int]:
        """[layers, 2 (K then V), KV heads, tokens, head_dim]"""
        return (
            self.layer_end - self.layer_start,
            2,
            self.head_end - self.head_start,
            self.token_end - self.token_start,
            head_dim,
        )


class Span(NamedTuple):
    """One step of the chain: tokens [start, end); digest: of all tokens before `end`."""

    start: int
    end: int
    digest: bytes


def token_bytes(tokens: Tokens) -> bytes:
    """Token ids as little-endian int32. Raises RequestError for ids outside [0, 2^31)."""
    import numpy as np

    ids = np.asarray(tokens)
    if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= 2**31):
        raise RequestError("Token ids must be integers from 0 to 2147483647.")
    return ids.astype("<i4").tobytes()


def chain(
    fingerprint: Fingerprint,
    tenant: bytes,
    tokens: Tokens,
    chunk_tokens: int,
    epochs: Epochs = Epochs.never(),
) -> list[Span]:
    """Cut tokens every `chunk_tokens` and digest each cut's whole past; the last span may be
    shorter. Two texts share spans exactly as far as they share whole chunks. tenant: its digest."""
    data = token_bytes(tokens)
    since = _EPOCHS.pack(*epochs) if any(epochs) else b""  # epoch 0 is as if there were none
    digest = sha256(_CHAIN + bytes.fromhex(fingerprint) + tenant + since).digest()
    count, start, link, out = len(data) // 4, 0, _LINK, list[Span]()
    for end in (*range(chunk_tokens, count, chunk_tokens), *([count] if count else ())):
        digest = sha256(link + digest + data[4 * start : 4 * end]).digest()
        out.append(tuple.__new__(Span, (start, end, digest)))  # by its name it takes thrice as long
        start = end
    return out


def chunk_key(digest: bytes, box: Box, codec: str) -> ChunkKey:
    """The name of the chunk that holds `box` under the chain digest of its span."""
    return ChunkKey(sha256(_KEY + digest + _BOX.pack(*box) + codec.encode()).digest())


def span_keys(spans: Iterable[Span], tails: Sequence[bytes]) -> list[tuple[ChunkKey, ...]]:
    """The same of all boxes of each span, for a fifth of the price. tails: see `key_tails`."""
    pack, named = _SPAN.pack, list[tuple[bytes, ...]]()
    for start, end, digest in spans:
        head = _KEY + digest + pack(start, end)
        named.append(tuple([sha256(head + tail).digest() for tail in tails]))
    return cast("list[tuple[ChunkKey, ...]]", named)


def key_tails(cells: Iterable[tuple[int, int, int, int]], codec: str) -> list[bytes]:
    """What is hashed last for the boxes of these cells (layers [i, j), KV heads [g, h))."""
    return [_CELL.pack(*cell) + codec.encode() for cell in cells]


def _cuts(length: int, largest: int) -> list[tuple[int, int]]:
    """[0, length) in the fewest ranges of at most `largest`, as equal as can be."""
    n = -(-length // largest)
    return [(length * k // n, length * (k + 1) // n) for k in range(n)]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape of a model's KV and how a span of tokens is cut into chunks.

    A span is one box when it fits `chunk_bytes` (header and checksum included), else it is cut into
    the fewest, most equal layer ranges; when one layer alone is too large, also by KV heads. The
    cut is that of a full span, so it is the same for every span of a model. Raises ConfigError when
    one head of one layer does not fit.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str  # float32, float16 or bfloat16
    chunk_tokens: int = CHUNK_TOKENS
    chunk_bytes: int = 2 * 1024 * 1024 - 64
    cells: tuple[tuple[int, int, int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.layers > 0 and self.kv_heads > 0 and self.head_dim > 0, self
        if self.chunk_tokens < 1:
            raise ConfigError(
                "store.chunk_tokens must be at least 1.", hint=f"The default is {CHUNK_TOKENS}."
            )
        head = 2 * self.chunk_tokens * self.head_dim * self.itemsize
        room = (min(self.chunk_bytes, MAX_VALUE_BYTES) - OVERHEAD) // head
        if room < 1:
            raise ConfigError(
                f"store.chunk_bytes = {self.chunk_bytes} cannot hold {self.chunk_tokens} tokens of "
                f"one KV head of one layer: {head + OVERHEAD} bytes.",
                hint="Raise store.chunk_bytes or lower store.chunk_tokens.",
            )
        layer_cuts = _cuts(self.layers, max(1, room // self.kv_heads))
        head_cuts = _cuts(self.kv_heads, min(room, self.kv_heads))
        cells = tuple((i, j, g, h) for i, j in layer_cuts for g, h in head_cuts)
        object.__setattr__(self, "cells", cells)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype][1]

    @property
    def bytes_per_token(self) -> int:
        """Payload bytes of one token, all layers and heads."""
        return self.layers * 2 * self.kv_heads * self.head_dim * self.itemsize

    @property
    def layer_groups(self) -> int:
        """How many ranges of layers a span is cut into."""
        return len({cell[:2] for cell in self.cells})

    def boxes(self, start: int, end: int) -> list[Box]:
        """The boxes of the span [start, end), by layer, then head."""
        return [Box(start, end, *cell) for cell in self.cells]
