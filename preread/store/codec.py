"""Tensors to payload bytes and back. The only file of the store that knows torch, and it imports it
when a tensor comes by, so that looking after chunks (`verify`, `gc`) starts without it.

Only raw gives back what went in. The others are half the size (of 16 bits an element) and change
answers: they are for those who ask for them, and `preread verify --codec` measures by how much.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Protocol

from preread.errors import ConfigError, EngineError
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

    def nbytes(self, shape: Shape, dtype: str) -> int:
        return math.prod(shape) * DTYPES[dtype][1]

    def encode(self, tensor: Tensor, shape: Shape, dtype: str) -> memoryview:
        return _bytes(_checked(tensor, shape, dtype))

    def decode(self, payload: memoryview, shape: Shape, dtype: str) -> Tensor:
        import torch

        return torch.frombuffer(payload, dtype=getattr(torch, dtype)).view(shape)


class Fp8Codec:
    """Eight-bit floats (e4m3, arXiv 2209.05433) with one scale for each head of each token.

    Payload: scales float32 [layers, 2, heads, tokens], then steps [layers, 2, heads, tokens, dim].
    An element is off by at most 1/16 of itself, or where it is less than 1/28,672 of the largest of
    its head and token, by 1/458,752 of that. A head with NaN or infinity comes back as NaN.
    """

    name = "fp8"
    code = CODECS["fp8"]

    def nbytes(self, shape: Shape, dtype: str) -> int:
        *rows, dim = shape
        return math.prod(rows) * (4 + dim)

    def encode(self, tensor: Tensor, shape: Shape, dtype: str) -> memoryview:
        from preread.kernels.fp8 import quantise_slow

        steps, scale = quantise_slow(_checked(tensor, shape, dtype).reshape(-1, shape[-1]))
        return _bytes(scale, steps)

    def decode(self, payload: memoryview, shape: Shape, dtype: str) -> Tensor:
        import torch

        *rows, dim = shape
        scale, steps = _split(payload, (math.prod(rows), 1), (math.prod(rows), dim))
        return (
            (steps.view(torch.float8_e4m3fn).float() * scale).to(getattr(torch, dtype)).view(shape)
        )


class Int8Codec:
    """256 even steps between least and largest: for keys of each channel, over the tokens of the
    chunk; for values of each token, over its channels. A few channels of keys are far larger than
    the rest, values have no such channels (KIVI, arXiv 2402.02750).

    Payload: least and step of keys, float32 [layers, heads, dim] each; least and step of values,
    float32 [layers, heads, tokens] each; then steps u8 [layers, 2, heads, tokens, dim]. An element
    is off by at most half a step. Where NaN or infinity took part, NaN comes back.
    """

    name = "int8"
    code = CODECS["int8"]

    def nbytes(self, shape: Shape, dtype: str) -> int:
        layers, _, heads, tokens, dim = shape
        return layers * heads * (8 * dim + 8 * tokens + 2 * tokens * dim)

    def encode(self, tensor: Tensor, shape: Shape, dtype: str) -> memoryview:
        import torch

        wide = _checked(tensor, shape, dtype).float()
        keys, values = _stepped(wide[:, 0], 2), _stepped(wide[:, 1], 3)
        return _bytes(*keys[:2], *values[:2], torch.stack((keys[2], values[2]), 1))

    def decode(self, payload: memoryview, shape: Shape, dtype: str) -> Tensor:
        import torch

        layers, _, heads, tokens, dim = shape
        channel, token = (layers, heads, 1, dim), (layers, heads, tokens, 1)
        *tables, steps = _split(payload, channel, channel, token, token, shape)
        least, step, least_v, step_v = tables
        keys = steps[:, 0] * step + least
        values = steps[:, 1] * step_v + least_v
        return torch.stack((keys, values), 1).to(getattr(torch, dtype))


def codec_of(name: str) -> Codec:
    """Raises ConfigError with the names there are."""
    kinds = {kind.name: kind for kind in (RawCodec, Fp8Codec, Int8Codec)}
    if name not in kinds:
        raise ConfigError(f"store.codec = {name!r}.", hint=f"Give one of {', '.join(kinds)}.")
    return kinds[name]()


def _checked(tensor: Tensor, shape: Shape, dtype: str) -> Tensor:
    """On the CPU. Raises EngineError unless it is of this shape and dtype."""
    import torch

    if sys.byteorder != "little":
        raise EngineError("The store needs a little-endian machine.", hint="Run elsewhere.")
    if tuple(tensor.shape) != shape or tensor.dtype != getattr(torch, dtype):
        raise EngineError(
            f"KV to store is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}.",
            hint="This is a bug in preread: please report it.",
        )
    return tensor.detach().cpu()


def _stepped(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """x float32 -> least, step (without `dim`), steps u8 (as x): x ~ least + step * steps."""
    import torch

    least, largest = x.aminmax(dim=dim, keepdim=True)
    step = (largest - least) / 255
    steps = ((x - least) / step).nan_to_num(0.0).round_().clamp_(0, 255)  # of equal elements: 0
    return least.squeeze(dim), step.squeeze(dim), steps.to(torch.uint8)


def _bytes(*tensors: Tensor) -> memoryview:
    """All of them one after the other; of one that is contiguous a view."""
    import torch

    flat = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    return (torch.cat(flat) if len(flat) > 1 else flat[0]).numpy().data


def _split(payload: memoryview, *shapes: tuple[int, ...]) -> list[Tensor]:
    """The tables of float32, and the last one of bytes, that fill the payload."""
    import torch

    whole, at, parts = torch.frombuffer(payload, dtype=torch.uint8), 0, []
    for shape in shapes[:-1]:
        end = at + 4 * math.prod(shape)
        parts.append(whole[at:end].clone().view(torch.float32).view(shape))  # aligned
        at = end
    return [*parts, whole[at:].view(shapes[-1])]
