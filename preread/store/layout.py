"""Which chunks a prefix has, what each of them must say about itself to the last field, and how it
becomes a value and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from preread.errors import ConfigError
from preread.store.chunk import ChunkHeader, pack, unpack
from preread.store.codec import Codec, RawCodec
from preread.store.keys import (
    DTYPES,
    OVERHEAD,
    Box,
    Epochs,
    Geometry,
    Span,
    chain,
    key_tails,
    span_keys,
    tenant_digest,
)
from preread.store.tiers.base import ChunkKey, Room, fresh
from preread.types import Fingerprint

if TYPE_CHECKING:
    from preread.store.codec import Tensor
    from preread.store.keys import Tokens
    from preread.store.seal import Keyring, Seal

Parts = tuple[bytes, memoryview, bytes]  # of one value, for Tier.write


class Layout:
    """Geometry, fingerprint, owner and codec together: everything identity depends on but the
    tokens."""

    def __init__(
        self,
        geometry: Geometry,
        fingerprint: Fingerprint,
        tenant: str,
        codec: Codec,
        *,
        shared: bool = False,
        keyring: Keyring | None = None,
        epochs: Callable[[], Epochs | None] = Epochs.never,
    ) -> None:
        """shared: `tenant` names a shared namespace. keyring: chunks are sealed. epochs: asked at
        every walk along a chain; None: nobody knows now, so there is no chain to walk. Raises
        ConfigError when the codec makes chunks too large."""
        self.geometry = geometry
        self.codec = codec
        self._fingerprint = fingerprint
        self._tenant = tenant_digest(tenant, shared=shared)
        self._identity = bytes.fromhex(fingerprint), self._tenant
        self._seal: Seal | None = keyring.seal(self._tenant) if keyring else None
        self._epochs = epochs
        self._tails = key_tails(geometry.cells, codec.name)
        self._sizes: dict[int, list[int]] = {}  # by tokens
        self._fits()

    def spans(self, tokens: Tokens) -> list[Span]:
        if (epochs := self._epochs()) is None:
            return []
        cut = self.geometry.chunk_tokens
        return chain(self._fingerprint, self._tenant, tokens, cut, epochs)

    def keys(self, span: Span) -> tuple[ChunkKey, ...]:
        """The keys of `chunks(span)`, for a tenth of the price: under which a tier has them."""
        ((_, keys),) = self.keyed([span])
        return keys

    def keyed(self, spans: Sequence[Span]) -> Iterator[tuple[Span, tuple[ChunkKey, ...]]]:
        """Each with its keys."""
        keys = span_keys(spans, self._tails)
        if (seal := self._seal) is not None:
            keys = [tuple(map(seal.name, of)) for of in keys]
        return zip(spans, keys, strict=True)

    def chunks(self, span: Span, keys: Sequence[ChunkKey] | None = None) -> list[ChunkHeader]:
        """By layer, then head: what is written, and what is expected when it is read. keys: those
        of the span, where they are known."""
        geometry, codec = self.geometry, self.codec
        dtype = DTYPES[geometry.dtype][0]
        names = self.keys(span) if keys is None else keys
        boxes, sizes = geometry.boxes(span.start, span.end), self.sizes(span)
        return [
            ChunkHeader(
                *self._identity,
                span.digest,
                box,
                geometry.head_dim,
                dtype,
                codec.code,
                nbytes,
                key,
            )
            for box, nbytes, key in zip(boxes, sizes, names, strict=True)
        ]

    def sizes(self, span: Span) -> list[int]:
        """Payload bytes of `chunks(span)`: the same for all spans of as many tokens."""
        tokens, geometry = span.end - span.start, self.geometry
        if (sizes := self._sizes.get(tokens)) is None:
            shapes = (box.shape(geometry.head_dim) for box in geometry.boxes(0, tokens))
            sizes = self._sizes[tokens] = [self.codec.nbytes(s, geometry.dtype) for s in shapes]
        return sizes

    def ends_span(self, box: Box) -> bool:
        """Whether it is the last of its span's boxes."""
        return box[2:] == self.geometry.cells[-1]

    def pack(self, chunk: ChunkHeader, tensor: Tensor) -> Parts:
        """The parts of one value. Raises EngineError for a tensor of another shape or dtype."""
        shape = chunk.box.shape(self.geometry.head_dim)
        payload = self.codec.encode(tensor, shape, self.geometry.dtype)
        return self._seal.pack(chunk, payload) if self._seal else pack(chunk, payload)

    @property
    def sealed(self) -> bool:
        return self._seal is not None

    @property
    def exact(self) -> bool:
        """Whether a payload is bit by bit what the KV is."""
        return isinstance(self.codec, RawCodec)

    def unpack(self, value: memoryview, expected: ChunkHeader, room: Room = fresh) -> memoryview:
        """The payload, if it is the chunk expected, to the last field: a view into `value`, or
        where chunks are sealed in memory of `room`. Raises ChunkFault."""
        return self._seal.unpack(value, expected, room) if self._seal else unpack(value, expected)

    def decode(self, box: Box, payload: memoryview) -> Tensor:
        return self.codec.decode(payload, box.shape(self.geometry.head_dim), self.geometry.dtype)

    def _fits(self) -> None:
        """The geometry is cut for raw payloads; a codec's tables must not make them larger."""
        geometry = self.geometry
        for box in geometry.boxes(0, geometry.chunk_tokens):
            size = self.codec.nbytes(box.shape(geometry.head_dim), geometry.dtype) + OVERHEAD
            if size > geometry.chunk_bytes:
                raise ConfigError(
                    f"store.chunk_bytes = {geometry.chunk_bytes} cannot hold {size} bytes of a "
                    f"chunk in codec {self.codec.name}.",
                    hint='Raise store.chunk_bytes, or set store.codec = "raw".',
                )
