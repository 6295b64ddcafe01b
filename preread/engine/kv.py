"""The KV of many tokens in memory, in the model's type or in eight bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from preread.engine.rows import Rows
from preread.kernels.kv import FORMATS, quantise, restored, rounded
from preread.models.interface import Decoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

At = slice | torch.Tensor  # along the first axis of tokens; an index may be of any shape
ALL = slice(None)
SCALE_BYTES = 4  # of a token and head, keys or values


@dataclass(frozen=True, slots=True)
class KVShape:
    """The KV of one model: layers, G key/value heads, head size D, and how it is kept (one of
    kernels.kv.PRECISIONS)."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    precision: str = "full"

    @staticmethod
    def of(decoder: Decoder, precision: str) -> KVShape:
        return KVShape(
            decoder.layers, decoder.kv_heads, decoder.head_dim, decoder.dtype, decoder.device,
            precision,
        )  # fmt: skip

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values of one token, all layers."""
        full = self.precision == "full"
        head = self.head_dim * self.dtype.itemsize if full else self.head_dim + SCALE_BYTES
        return self.layers * 2 * self.kv_heads * head


class KV:
    """values [layers, 2, G, *tokens, D], as they were computed. Committed lazily on a CPU."""

    def __init__(self, shape: KVShape, *tokens: int) -> None:
        self.shape = shape
        self.values = self._made(shape.dtype, *tokens, shape.head_dim)
        self._rows = Rows.of(self.values) if len(tokens) == 1 else None

    def _made(self, dtype: torch.dtype, *sizes: int) -> torch.Tensor:
        shape = self.shape
        return torch.empty(
            (shape.layers, 2, shape.kv_heads, *sizes), dtype=dtype, device=shape.device
        )

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """What is read of x [..., D] once it was written."""
        return x

    def read(self, layer: int, at: At) -> torch.Tensor:
        """[2, G, *at, …, D]; where `at` is a slice perhaps a view."""
        return self.values[layer][:, :, at]

    def write(self, layer: int, at: At, k: torch.Tensor, v: torch.Tensor) -> None:
        """k, v [n, G, D] become n tokens, counted through all axes of tokens."""
        for side, x in enumerate((k, v)):
            _put(self.values[layer, side].flatten(1, -2), at, x.transpose(0, 1))

    def select(self, at: At, layers: slice = ALL, heads: slice = ALL) -> torch.Tensor:
        """[layers, 2, heads, *at, …, D]; where `at` is a slice perhaps a view."""
        return self.values[layers, :, heads, at]

    def fill(
        self, at: slice, kv: torch.Tensor, layers: slice = ALL, heads: slice = ALL,
        *, wait: bool = True,
    ) -> None:  # fmt: skip
        """kv [layers, 2, heads, n, D], on any device, becomes tokens `at`. wait: until it has been
        read, where it is not on this device; else it must stay as it is until then."""
        if wait or self._rows is None or not self._rows.fill(at, kv, layers, heads):
            self.values[layers, :, heads, at].copy_(kv, non_blocking=not wait)

    def raw(self) -> NDArray[np.uint8] | None:
        """All of `values` as bytes [layers, 2, G, bytes] that anybody may write; None where they
        lie on a device."""
        if self.values.device.type != "cpu":
            return None
        return self.values.view(torch.uint8).flatten(3).numpy()

    def clear(self, at: At) -> None:
        """Zeros, which are finite."""
        self.values[:, :, :, at] = 0

    def tensors(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For the CUDA programs: values or codes [2, G, *tokens, D], and the scales [2, G, *tokens]
        of codes; where there are none, the values again."""
        return self.values[layer], self.values[layer]


class EightBitKV(KV):
    """values: codes int8; scales float32 [layers, 2, G, *tokens]; see kernels/kv.py."""

    def __init__(self, shape: KVShape, *tokens: int) -> None:
        self.shape = shape
        self.values = self._made(torch.int8, *tokens, shape.head_dim)
        self.scales = self._made(torch.float32, *tokens)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        return rounded(x, self.shape.precision)

    def read(self, layer: int, at: At) -> torch.Tensor:
        return self._restored(self.values[layer][:, :, at], self.scales[layer][:, :, at])

    def write(self, layer: int, at: At, k: torch.Tensor, v: torch.Tensor) -> None:
        codes, scales = quantise(torch.stack((k, v)).transpose(1, 2), self.shape.precision)
        _put(self.values[layer].flatten(2, -2), at, codes)
        _put(self.scales[layer].flatten(2)[..., None], at, scales[..., None])

    def select(self, at: At, layers: slice = ALL, heads: slice = ALL) -> torch.Tensor:
        return self._restored(self.values[layers, :, heads, at], self.scales[layers, :, heads, at])

    def fill(
        self, at: slice, kv: torch.Tensor, layers: slice = ALL, heads: slice = ALL,
        *, wait: bool = True,
    ) -> None:  # fmt: skip
        codes, scales = quantise(kv, self.shape.precision)  # nobody else's: these are waited for
        self.values[layers, :, heads, at].copy_(codes)
        self.scales[layers, :, heads, at].copy_(scales)

    def raw(self) -> None:
        return None

    def clear(self, at: At) -> None:
        self.values[:, :, :, at] = 0
        self.scales[:, :, :, at] = 0

    def tensors(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        code = FORMATS[self.shape.precision].code
        return self.values[layer].view(code), self.scales[layer]

    def _restored(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return restored(codes, scales, self.shape.precision, self.shape.dtype)


def kv_of(shape: KVShape, *tokens: int) -> KV:
    """Room for so many tokens, which may be counted along several axes."""
    return KV(shape, *tokens) if shape.precision == "full" else EightBitKV(shape, *tokens)


def _put(flat: torch.Tensor, at: At, x: torch.Tensor) -> None:
    """flat [..., N, D], x [..., n, D]"""
    if isinstance(at, slice):
        flat[..., at, :] = x
    else:
        flat.index_copy_(-2, at, x)
