"""Weights and activations in eight bits (W8A8): x W^T ~ a b (p q^T), p and q int8 in [-127, 127].

The weights are those of `kernels.int8`, one scale b per row of the matrix. The other side is one
byte per element instead of two, with one scale a per row of the input, found anew for each product
(dynamic quantisation, as in LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339): half the work of
`int8` wherever computing takes the time. The sum of products is exact in integers, so a row's
result is the same, to the last bit, whatever the other rows are.

What one byte loses is lost in two places, where a few elements of a row are much larger than the
others or where the output is the answer itself: the MLP's way down and the head. Those products
keep the two bytes of `int8` (`MIXED`).
"""

from __future__ import annotations

from functools import cache

import torch

from preread.kernels.int8 import PackedInt8, PlainInt8, int8, int8_linear_slow, quantise_rows
from preread.kernels.linear import Linear, MixedForms

LARGEST = 127  # of an element; -128 is not used, so that the range is symmetric
_ZERO = 128  # what zero is in oneDNN's unsigned bytes
_NOTHING = 1e-30  # a row of x whose largest element is below this is zero


def quantise_slow(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition of p and a. x [M, K] -> p int64 [M, K], a float64 [M]."""
    scale = x.double().abs().amax(1) / LARGEST
    return (x.double() / scale.clamp_min(1e-300)[:, None]).round().long(), scale


def w8a8_linear_slow(
    x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The definition: x [M, K], q, scale from `quantise_rows` of the weight -> [M, N] float64."""
    steps, own = quantise_slow(x)
    return int8_linear_slow(steps * own[:, None], q, scale, bias)


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] -> p + 128 in uint8 [max(M, 4), K], a float32 (float64 for such an x) [M, 1]. Not
    finite: the scale is not either, so that it shows in the product."""
    rows = len(x)
    largest = x.abs().amax(1, keepdim=True)  # not vector_norm of infinity: ten times as long
    largest = largest.to(torch.promote_types(x.dtype, torch.float32)).clamp_min_(_NOTHING)
    # One sum rounds to the nearest (a cast to integers cuts off) and moves the range above zero;
    # to bytes by way of int16, ten times as quick as from floats.
    steps = (x * (LARGEST / largest)).add_(_ZERO + 0.5).to(torch.int16)
    # One row alone is slower than four; what the others hold does not matter.
    codes = torch.empty(max(rows, 4), x.shape[1], dtype=torch.uint8)
    codes[:rows] = steps
    return codes, largest.div_(LARGEST)


class PlainW8A8:
    """The rounded input through the plain int8 product: where there is no integer product."""

    __slots__ = ("_product",)

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._product = PlainInt8(weight, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        codes, scale = quantise(x)
        rounded = (codes[: len(x)].to(scale.dtype) - _ZERO) * scale
        return self._product(rounded).to(x.dtype)


class PackedW8A8(PackedInt8):
    """Same, by the integer product of oneDNN. Only where `w8a8_works`."""

    __slots__ = ()

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> float32 [M, N]."""
        codes, scale = quantise(x.float())
        y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, _ZERO, self._weight, self._scale, self._zero, None, 1.0, 0,
            torch.float32, "none", [], "",
        )  # fmt: skip
        out = y[: len(x)].mul_(scale)
        if self._bias is not None:
            out += self._bias
        return out


def w8a8(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The fastest form that is known to be right here. Weights on the CPU."""
    return PackedW8A8(weight, bias) if w8a8_works() else PlainW8A8(weight, bias)


MIXED = MixedForms(w8a8, sensitive=int8)


@cache
def w8a8_works() -> bool:
    """Whether this build and CPU have the integer product, and it agrees with the definition on a
    small case of long sums of one sign: without VNNI, pairs of products of whole bytes are added
    in 16 bits and saturate. Asked once per process."""
    try:
        make = torch.Generator().manual_seed(1)
        weight = torch.randn(80, 96, generator=make).abs()
        x = torch.randn(5, 96, generator=make).abs()
        x[1:3], weight[:9] = 1.0, 1.0  # the largest codes, side by side
        for rows in (1, 5):
            exact = w8a8_linear_slow(x[:rows], *quantise_rows(weight))
            got = PackedW8A8(weight)(x[:rows])
            torch.testing.assert_close(got.double(), exact, atol=0, rtol=1e-2)
    except (RuntimeError, NotImplementedError, AttributeError, AssertionError, TypeError):
        return False
    return True
