"""What rows of logits say: the best token, its logit and the log-sum-exp."""

from __future__ import annotations

from typing import NamedTuple

import torch


class RowStats(NamedTuple):
    """best: int64 [R], ties to the lowest; top: its logit; lse: natural log-sum-exp, float32 [R],
    not finite where the row holds NaN or +infinity."""

    best: torch.Tensor
    top: torch.Tensor
    lse: torch.Tensor


def row_stats_slow(logits: torch.Tensor) -> RowStats:
    """The definition. logits [R, V]."""
    wide = logits.float()
    top = wide.amax(-1)
    return RowStats(wide.argmax(-1), top, wide.logsumexp(-1).where(top < torch.inf, torch.inf))


def row_stats(logits: torch.Tensor) -> RowStats:
    """Same, in one pass over the row where there is a kernel."""
    if logits.device.type != "cuda":
        return row_stats_slow(logits)
    from preread.kernels.cuda import rows

    return RowStats(*rows.row_stats(logits))
