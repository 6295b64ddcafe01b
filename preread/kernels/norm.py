"""Root-mean-square norm as the published models compute it: statistics in fp32, the normalised
value rounded to the input's dtype, and only then the weight (Zhang and Sennrich 2019, in the order
of operations of the Llama reference code; the order shows in bf16)."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def rms_norm_slow(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The definition. x [..., N], weight [N] -> [..., N] in x's dtype."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Same, by the stock op. The weight stays outside of it: inside, it would be applied in fp32
    before the rounding, which no published model does."""
    return F.rms_norm(x, (x.shape[-1],), None, eps) * weight
