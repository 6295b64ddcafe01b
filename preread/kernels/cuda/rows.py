"""What a row of logits says, in one pass over it: arg-max, maximum and log-sum-exp."""

from __future__ import annotations

import torch

from preread.kernels.cuda.row_programs import row_stats_program


def row_stats(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits [R, V] of any float type -> arg-max int64 [R] (ties: the lowest), maximum and natural
    log-sum-exp float32 [R]. A row with NaN or +infinity has neither."""
    rows, size = logits.shape
    best = torch.empty(rows, dtype=torch.int64, device=logits.device)
    top, lse = torch.empty((2, rows), dtype=torch.float32, device=logits.device)
    row_stats_program[(rows,)](
        logits, best, top, lse, logits.stride(0), size, BLOCK=4096, num_warps=8, num_stages=3
    )
    return best, top, lse
