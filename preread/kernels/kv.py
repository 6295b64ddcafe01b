"""Keys and values in eight bits: x ~ scale * code, with one scale for each token, head and side.

A scale is a power of two, as in the shared exponents of microscaling formats (OCP MX 1.0;
Rouhani et al. 2023, arXiv 2310.10537). So scale * code is exact in the model's type, and rounding
what was rounded changes nothing: KV may be read, stored, moved and written again. Where the model
is float16, values from 63,488 on may become infinite, which its rows report.

int8 is the closer one where a head's elements are of one size; eight-bit floats (e4m3, Micikevicius
et al. 2022, arXiv 2209.05433) keep three bits of mantissa of large and small ones alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Format(NamedTuple):
    """code: the type of a code, largest: the largest of them."""

    code: torch.dtype
    largest: float


FORMATS = {"int8": Format(torch.int8, 127.0), "fp8": Format(torch.float8_e4m3fn, 448.0)}
PRECISIONS = ("full", *FORMATS)
LEAST = 2.0**-24  # scale: float16 has it, and what is smaller is nothing

# type -> integers as wide, the shift that brings e4m3's bits to the place of this type's, its sign
# and those bits, and the difference of the exponents' biases as a factor
_PLACES = {
    torch.bfloat16: (torch.int16, 4, -0x8000 | 0x07F0, 2.0**120),
    torch.float16: (torch.int16, 7, -0x8000 | 0x3F80, 2.0**8),
    torch.float32: (torch.int32, 20, -0x80000000 | 0x07F00000, 2.0**120),
}


class Grid(NamedTuple):
    """How the bits of the largest element, at least `least`, become those of its scale: add `up`,
    drop the mantissa, subtract `down`."""

    least: float
    up: int
    down: int


def grid(precision: str) -> Grid:
    """Integers only, so that every device finds the same scale."""
    largest = FORMATS[precision].largest
    mantissa, exponent = math.frexp(largest)  # in [0.5, 1)
    bits = int((2 * mantissa - 1) * (1 << 23))
    return Grid(largest * LEAST, (1 << 23) - 1 - bits, (exponent - 1) << 23)


def quantise(x: torch.Tensor, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., D] -> codes int8 [..., D] (for fp8 the bits of e4m3), scales float32 [...]: the
    smallest power of two with which the codes hold the largest element, at least LEAST. NaN and
    infinity show in the scale."""
    code, (least, up, down) = FORMATS[precision].code, grid(precision)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = wide.abs().amax(-1).float()
    bits = (largest.clamp_min(least).view(torch.int32) + up).bitwise_and_(0x7F800000) - down
    scale = bits.view(torch.float32).masked_fill_(~largest.isfinite(), torch.nan)
    steps = wide / scale[..., None]
    if code == torch.int8:
        return steps.round_().nan_to_num_(0.0).to(code), scale
    return steps.float().to(code).view(torch.int8), scale


def restored(
    codes: torch.Tensor, scale: torch.Tensor, precision: str, dtype: torch.dtype
) -> torch.Tensor:
    """codes int8 [..., D], scale [...] -> [..., D] in `dtype`, exact."""
    if precision == "int8":
        wide = codes.to(dtype)
    elif codes.device.type == "cpu" and dtype in _PLACES:
        wide = _moved(codes, dtype)
    else:
        wide = codes.view(torch.float8_e4m3fn).to(dtype)
    return wide.mul_(scale.to(dtype)[..., None])


def _moved(codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a CPU's cast from e4m3 gives, seven times as fast."""
    integer, shift, mask, factor = _PLACES[dtype]
    moved = codes.to(integer).bitwise_left_shift_(shift).bitwise_and_(mask)
    return moved.view(dtype).mul_(factor)


def rounded(x: torch.Tensor, precision: str) -> torch.Tensor:
    """What is read of x [..., D] once it was written; "full": x itself."""
    return x if precision == "full" else restored(*quantise(x, precision), precision, x.dtype)


def rounded_slow(x: torch.Tensor, precision: str) -> torch.Tensor:
    """The definition: the nearest of all values a code may stand for, among two as near the one
    with the even code."""
    code, largest = FORMATS[precision]
    every = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8)
    values = every.view(code).double()
    keep = values.abs() <= largest  # neither NaN nor -128
    every, values = every[keep], values[keep]
    rows = x.reshape(-1, x.shape[-1]).double()
    out = torch.empty_like(rows)
    for row, to in zip(rows, out, strict=True):
        top = float(row.abs().max())
        if not math.isfinite(top):
            to[:] = torch.nan
            continue
        scale = LEAST
        while scale * largest < top:
            scale *= 2
        away = (row[:, None] / scale - values).abs()
        nearest = away == away.min(1, keepdim=True).values
        even = nearest & ((every & 1) == 0)
        to[:] = scale * values[torch.where(even.any(1)[:, None], even, nearest).int().argmax(1)]
    return out.view(x.shape).to(x.dtype)
