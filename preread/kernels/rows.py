"""What rows of logits say: the best token, its logit and the log-sum-exp."""

from __future__ import annotations

from typing import NamedTuple

import torch


class RowStats(NamedTuple):
    """best: int64 [R], ties to the lowest; top: its logit, not finite where the row holds NaN or
    +infinity; lse: natural log-sum-exp, float32 [R], perhaps None where nobody asked for it."""

    best: torch.Tensor
    top: torch.Tensor
    lse: torch.Tensor | None


def row_stats_slow(logits: torch.Tensor, *, mass: bool = True) -> RowStats:
    """The definition. logits [R, V]; mass: the log-sum-exp, too."""
    wide = logits.float()
    top = wide.amax(-1)
    lse = wide.logsumexp(-1).where(top < torch.inf, torch.inf) if mass else None
    return RowStats(wide.argmax(-1), top, lse)


def row_stats(logits: torch.Tensor, *, mass: bool = True) -> RowStats:
    """Same, in one pass over the row where there is a kernel, which sums in passing."""
    if logits.device.type != "cuda":
        return row_stats_slow(logits, mass=mass)
    from preread.kernels.cuda import rows

    return RowStats(*rows.row_stats(logits))
