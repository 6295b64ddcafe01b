"""Merging partial attention results by their log-sum-exps: exact, whatever the split of the keys.

With parts (o_i, s_i) over disjoint keys, s = log sum exp(s_i) and o = sum exp(s_i - s) o_i, as in
FlashAttention's split-K reduction and FlashInfer's cascade. Accumulated in float32 (float64 where
the inputs are), cast once by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def fold(out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Merge one more part into (out, lse), in place. out [..., D] float32 or float64; lse [...];
    part of any dtype. Rows where both sides are empty (-inf) stay 0 and -inf."""
    total = torch.logaddexp(lse, part_lse.to(lse.dtype))
    base = total.masked_fill(total == -torch.inf, 0.0)
    out.mul_((lse - base).exp_()[..., None])
    out.addcmul_(part.to(out.dtype), (part_lse - base).exp()[..., None])
    lse.copy_(total)


def merge_reference(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    """The slow obvious twin: all parts at once, in float64."""
    lses = torch.stack([lse.double() for _, lse in parts])
    total = lses.logsumexp(0)
    weights = (lses - total).exp().nan_to_num(0.0)
    outs = torch.stack([out.double() for out, _ in parts])
    return (weights[..., None] * outs).sum(0), total
