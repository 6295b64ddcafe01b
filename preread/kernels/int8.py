"""Weights in eight bits: W ~ scale * q, q int8 in [-127, 127], one scale per row of the matrix.

Only the weights are rounded. The other side of an integer product must be integers, too, so every
row of the input becomes two bytes per element, 128 * high + low, by a scale of its own: 14 bits
below the row's largest element, more than bfloat16 keeps there. The two bytes are two rows of one
product: where reading the weights is what takes the time they cost nothing, and with many rows
the product is as fast as one in bfloat16. Seven bits a byte, because processors without VNNI add
pairs of byte products in 16 bits and would saturate. A row's result does not depend on the other
rows.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional as F

from preread.kernels.linear import Linear, PlainLinear

LARGEST = 127  # of a weight; -128 is not used, so that the range is symmetric
_ROWS = 4096  # of a weight quantised at once, of a plain product computed at once
_BLOCK = 128  # rows of x computed at once: what lies between stays in the cache
_HALF = 64  # what zero is in either byte
_NOTHING = 1e-30  # a row of x whose largest element is below this is zero
_MOST = 128 * (127 - _HALF) + (127 - _HALF)  # the largest element of a row of x


def quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [N, K] -> q int8 [N, K], scale float32 [N]: the nearest q, the scale of the row's
    largest element. A row of zeros has scale 0. Raises nothing; NaN gives a NaN scale."""
    q = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(weight.shape[0], dtype=torch.float32)
    for lo in range(0, len(weight), _ROWS):
        part = weight[lo : lo + _ROWS].float()
        largest = part.abs().amax(1)
        scale[lo : lo + _ROWS] = largest / LARGEST
        steps = part * (LARGEST / largest.clamp_min(torch.finfo(torch.float32).tiny))[:, None]
        q[lo : lo + _ROWS] = steps.round_().nan_to_num_(0.0).to(torch.int8)
    return q, scale


def rounded(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The plain product, in weight's dtype, by what the int8 product multiplies by in its place:
    for references. weight: float32 or float64, of values that the quantised dtype has."""
    q, scale = quantise_rows(weight)
    return PlainLinear(q.to(weight.dtype) * scale.to(weight.dtype)[:, None], bias)


def split_slow(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The definition of the two bytes. x [M, K] -> high, low int64 [M, K], scale float64 [M]:
    x ~ scale * (128 * high + low), high and low in [-64, 63]."""
    scale = x.double().abs().amax(1) / _MOST
    steps = (x.double() / scale.clamp_min(1e-300)[:, None]).round().long()
    high = (steps + _HALF) // 128
    return high, steps - 128 * high, scale


def int8_linear_slow(
    x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The definition, with x as it is: x [M, K], q, scale from `quantise_rows` -> [M, N] in x's
    dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.linear(
        x.to(wide), q.to(wide) * scale.to(wide)[:, None], None if bias is None else bias.to(wide)
    ).to(x.dtype)


class PlainInt8:
    """Same, a part of the matrix after the other, so that the memory saved stays saved: where there
    is no integer product to use."""

    __slots__ = ("_bias", "_q", "_scale")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._q, self._scale = quantise_rows(weight)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(x.shape[0], len(self._q))
        for lo in range(0, len(self._q), _ROWS):
            part = slice(lo, lo + _ROWS)
            bias = None if self._bias is None else self._bias[part]
            out[:, part] = int8_linear_slow(x, self._q[part], self._scale[part], bias)
        return out


class PackedInt8:
    """Same, by the integer product of oneDNN. Only where `int8_works`."""

    __slots__ = ("_bias", "_rows", "_scale", "_weight", "_zero")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        q, self._scale = quantise_rows(weight)
        self._rows = len(q)
        self._weight = torch.ops.onednn.qlinear_prepack(q, None)
        self._zero = torch.zeros(self._rows, dtype=torch.int32)
        self._bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) <= _BLOCK:
            return self._product(x).to(x.dtype)
        out = x.new_empty(len(x), self._rows)
        for lo in range(0, len(x), _BLOCK):
            out[lo : lo + _BLOCK] = self._product(x[lo : lo + _BLOCK])  # rounds to x's dtype
        return out

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> float32 [M, N]."""
        rows = len(x)
        parts, scale = split(x)
        y = torch.ops.onednn.qlinear_pointwise(
            parts, 1.0, _HALF, self._weight, self._scale, self._zero, None, 1.0, 0,
            torch.float32, "none", [], "",
        )  # fmt: skip
        out: torch.Tensor = torch.add(y[rows : 2 * rows], y[:rows], alpha=128.0).mul_(scale)
        if self._bias is not None:
            out += self._bias
        return out


def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] -> uint8 [max(2 M, 4), K], all high bytes before all low ones, each plus 64, and
    scale float32 [M, 1]. Not finite: the scale is not either, so that it shows in the product."""
    rows = len(x)
    x = x.float()
    # Not vector_norm of infinity, which takes ten times as long.
    largest = x.abs().amax(1, keepdim=True).clamp_min_(_NOTHING)
    # One sum rounds to the nearest (a cast to integers cuts off) and moves the range above zero.
    steps = (x * (_MOST / largest)).add_(128 * _HALF + _HALF + 0.5).to(torch.int16)
    # Two rows alone are slower than four; what the others hold does not matter.
    parts = torch.empty(max(2 * rows, 4), x.shape[1], dtype=torch.uint8)
    torch.bitwise_right_shift(steps, 7, out=parts[:rows])
    torch.bitwise_and(steps, 127, out=parts[rows : 2 * rows])
    return parts, largest.div_(_MOST)


def int8(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The fastest form that is known to be right here. Weights on the CPU."""
    return PackedInt8(weight, bias) if int8_works() else PlainInt8(weight, bias)


@cache
def int8_works() -> bool:
    """Whether this build and CPU have the integer product, and it agrees with the definition on a
    small case whose sums would show any saturation. Asked once per process."""
    try:
        make = torch.Generator().manual_seed(1)
        weight = torch.randn(80, 96, generator=make).abs()
        x = torch.randn(5, 96, generator=make).abs()
        for rows in (1, 5):
            exact = int8_linear_slow(x[:rows].double(), *quantise_rows(weight))
            got = PackedInt8(weight)(x[:rows])
            torch.testing.assert_close(got.double(), exact, atol=0, rtol=1e-3)
    except (RuntimeError, NotImplementedError, AttributeError, AssertionError, TypeError):
        return False
    return True
