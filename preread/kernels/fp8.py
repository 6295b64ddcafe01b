"""Weights and activations in eight-bit floats (e4m3, Micikevicius et al. 2022, arXiv 2209.05433):
products at twice the rate of bfloat16 on GPUs that have them (Hopper, Ada).

W ~ scale * q with one scale per row of the matrix, x ~ scale * q with one per row of the input,
found anew for each product, so a row's result does not depend on the other rows. Both sides keep
three bits of mantissa: this is not quite the same model, and `preread doctor` measures how much.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from preread.kernels.linear import Linear, PlainLinear

LARGEST = 448.0  # of e4m3
FP8 = torch.float8_e4m3fn
_MULTIPLE = 16  # of both sizes of a weight that the product takes
_ROWS = 4096  # of a weight quantised at once


def quantise_slow(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition. x [M, K] -> q e4m3 [M, K], scale float32 [M]: the row's largest element is
    LARGEST steps. A row of zeros has scale 0; NaN and infinity show in the scale."""
    wide = x.float()
    largest = wide.abs().amax(1)
    float32 = torch.finfo(torch.float32)
    steps = wide * (LARGEST / largest.clamp_min(float32.tiny)).clamp_max(float32.max)[:, None]
    return steps.nan_to_num(0.0).clamp(-LARGEST, LARGEST).to(FP8), largest / LARGEST


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Same, in one pass over x where there is a kernel."""
    if x.device.type != "cuda":
        return quantise_slow(x)
    from preread.kernels.cuda.elementwise import quantise_rows

    return quantise_rows(x, LARGEST)


def fp8_linear_slow(
    x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The definition: x [M, K], q, scale from `quantise_slow` of the weight -> [M, N] in x's
    dtype, both sides rounded to eight bits, the product exact in float64."""
    steps, own = quantise_slow(x)
    wide = F.linear(steps.double() * own.double()[:, None], q.double() * scale.double()[:, None])
    return (wide if bias is None else wide + bias.double()).to(x.dtype)


class Fp8Linear:
    """The product of the tensor cores. The weight's sizes are multiples of 16."""

    __slots__ = ("_bias", "_q", "_scale")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        parts = [quantise_slow(weight[i : i + _ROWS]) for i in range(0, len(weight), _ROWS)]
        self._q = torch.cat([q for q, _ in parts])
        self._scale = torch.cat([scale for _, scale in parts])[None]
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        q, scale = quantise(x)
        out: torch.Tensor = torch._scaled_mm(
            q, self._q.t(), scale_a=scale[:, None], scale_b=self._scale, out_dtype=torch.bfloat16
        )
        out = out if x.dtype is torch.bfloat16 else out.to(x.dtype)
        return out if self._bias is None else out + self._bias


def fp8(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """In eight bits where the product takes a weight's sizes, else as it is."""
    if weight.shape[0] % _MULTIPLE or weight.shape[1] % _MULTIPLE:
        return PlainLinear(weight, bias)
    return Fp8Linear(weight, bias)


def rounded_fp8(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The plain product, in weight's dtype, by what `fp8` multiplies by: for references."""
    if weight.shape[0] % _MULTIPLE or weight.shape[1] % _MULTIPLE:
        return PlainLinear(weight, bias)
    q, scale = quantise_slow(weight.float())
    return PlainLinear(q.to(weight.dtype) * scale.to(weight.dtype)[:, None], bias)


def fp8_works(device: torch.device) -> bool:
    """Whether a device has the product."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
