"""Which chunks a prefix has, and what each of them must say about itself to the last field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from preread.store.chunk import ChunkHeader
from preread.store.codec import Codec
from preread.store.keys import DTYPES, Box, Geometry, Span, chain, chunk_key, tenant_digest
from preread.store.tiers.base import ChunkKey
from preread.types import Fingerprint

if TYPE_CHECKING:
    from preread.store.codec import Tensor
    from preread.store.keys import Tokens


class Layout:
    """Geometry, fingerprint, tenant and codec together: everything identity depends on but the
    tokens."""

    def __init__(
        self, geometry: Geometry, fingerprint: Fingerprint, tenant: str, codec: Codec
    ) -> None:
        self.geometry = geometry
        self.codec = codec
        self._fingerprint = fingerprint
        self._tenant = tenant
        self._identity = bytes.fromhex(fingerprint), tenant_digest(tenant)

    def spans(self, tokens: Tokens) -> Iterator[Span]:
        return chain(self._fingerprint, self._tenant, tokens, self.geometry.chunk_tokens)

    def keys(self, span: Span) -> list[ChunkKey]:
        """The keys of `chunks(span)`, for a third of the price."""
        boxes = self.geometry.boxes(span.start, span.end)
        return [chunk_key(span.digest, box, self.codec.name) for box in boxes]

    def chunks(self, span: Span) -> list[ChunkHeader]:
        """By layer, then head: what is written, and what is expected when it is read."""
        geometry, codec = self.geometry, self.codec
        dtype = DTYPES[geometry.dtype][0]
        return [
            ChunkHeader(
                *self._identity,
                span.digest,
                box,
                geometry.head_dim,
                dtype,
                codec.code,
                codec.nbytes(box.shape(geometry.head_dim), geometry.dtype),
                chunk_key(span.digest, box, codec.name),
            )
            for box in geometry.boxes(span.start, span.end)
        ]

    def ends_span(self, box: Box) -> bool:
        """Whether it is the last of its span's boxes."""
        return box[2:] == self.geometry.cells[-1]

    def encode(self, box: Box, tensor: Tensor) -> memoryview:
        return self.codec.encode(tensor, box.shape(self.geometry.head_dim), self.geometry.dtype)

    def decode(self, box: Box, payload: memoryview) -> Tensor:
        return self.codec.decode(payload, box.shape(self.geometry.head_dim), self.geometry.dtype)
