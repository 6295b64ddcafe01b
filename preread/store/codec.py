"""Tensors to payload bytes and back. The only file of the store that knows torch, and it imports it
when a tensor comes by, so that looking after chunks (`verify`, `gc`) starts without it."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Protocol

from preread.errors import EngineError
from preread.store.keys import CODECS, DTYPES

if TYPE_CHECKING:
    from torch import Tensor as Tensor

Shape = tuple[int, int, int, int, int]  # [layers, 2 (K then V), KV heads, tokens, head_dim]


class Codec(Protocol):
    """How KV lies in a payload. name is part of every key, code stands in the header."""

    @property
    def name(self) -> str: ...
    @property
    def code(self) -> int: ...

    def nbytes(self, shape: Shape, dtype: str) -> int:
        """Payload bytes of such a tensor; needs no torch."""
        ...

    def encode(self, tensor: Tensor, shape: Shape, dtype: str) -> memoryview:
        """Flat bytes. Raises EngineError when the tensor is not of this shape and dtype."""
        ...

    def decode(self, payload: memoryview, shape: Shape, dtype: str) -> Tensor:
        """A CPU tensor that may share the payload's memory."""
        ...


class RawCodec:
    """Exact bit patterns, C order, little-endian. Copies no contiguous CPU tensor, nor back."""

    name = "raw"
    code = CODECS["raw"]

    def __init__(self) -> None:
        if sys.byteorder != "little":
            raise EngineError("The store needs a little-endian machine.", hint="Run elsewhere.")

    def nbytes(self, shape: Shape, dtype: str) -> int:
        return math.prod(shape) * DTYPES[dtype][1]

    def encode(self, tensor: Tensor, shape: Shape, dtype: str) -> memoryview:
        import torch

        if tuple(tensor.shape) != shape or tensor.dtype != getattr(torch, dtype):
            raise EngineError(
                f"KV to store is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}.",
                hint="This is a bug in preread: please report it.",
            )
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        return flat.numpy().data

    def decode(self, payload: memoryview, shape: Shape, dtype: str) -> Tensor:
        import torch

        return torch.frombuffer(payload, dtype=getattr(torch, dtype)).view(shape)
