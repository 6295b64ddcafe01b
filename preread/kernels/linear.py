"""Products with a weight matrix: y = x W^T + b, behind one small seam.

On a CPU, torch's own product reads a plain bfloat16 matrix at half the rate of memory when there
are few rows, and a plain float32 one twice for each doubling of the rows. The same product in
oneDNN over weights laid out for it once (what torch's own compiler emits) has neither fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch.nn import functional as F


class Linear(Protocol):
    """A weight matrix [N, K] and perhaps a bias [N]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N] in x's dtype."""
        ...


# (weight [N, K], bias [N] or None) -> the product; it may keep the weight in another form.
MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear]


@dataclass(frozen=True, slots=True)
class MixedForms:
    """A MakeLinear that keeps some products in another form: those that lose most where inputs are
    rounded, the MLP's way down (a few of its inputs are far larger than the others) and the head.
    A decoder asks `sensitive_form` for them."""

    most: MakeLinear
    sensitive: MakeLinear

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        return self.most(weight, bias)


def sensitive_form(linear: MakeLinear) -> MakeLinear:
    """The form of the products that lose most."""
    return linear.sensitive if isinstance(linear, MixedForms) else linear


class PlainLinear:
    """The stock product over the weights as they are: every device, every dtype; the slow twin."""

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)


class PackedLinear:
    """Same, over weights in oneDNN's own layout. Only where `packing_works`."""

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        if rows < 3:  # oneDNN takes longer for one or two rows than for four
            x = F.pad(x, (0, 0, 0, 4 - rows))
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return out[:rows]


def pack(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The fastest form that is known to be right for a weight of this dtype on this device."""
    if weight.device.type == "cpu" and packing_works(weight.dtype):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether this build and CPU have the packed product for a dtype, and it agrees with the stock
    one on a small case. The calls are private to torch, so they are asked, once per process."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        make = torch.Generator().manual_seed(1)
        x, weight = (torch.randn(n, 96, generator=make).to(dtype) for n in (5, 80))
        bias = torch.randn(80, generator=make).to(dtype)
        tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-4
        for rows in (1, 5):
            got = PackedLinear(weight, bias)(x[:rows])
            exact = F.linear(x[:rows].double(), weight.double(), bias.double())
            torch.testing.assert_close(got.double(), exact, atol=tolerance, rtol=tolerance)
    except (RuntimeError, NotImplementedError, AttributeError, AssertionError):
        return False
    return True
