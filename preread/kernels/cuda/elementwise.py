"""Norm, rotation and SwiGLU in one pass each, in Triton. Rounding is that of the torch forms in
`preread.kernels`: every intermediate that they hold in the model's dtype is rounded to it here, so
results differ by the order of a sum at most."""

from __future__ import annotations

import torch
import triton

from preread.kernels.cuda.row_programs import (
    add_rms_norm_program,
    quantise_program,
    rotate_program,
    swiglu_program,
)


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """x [T, E] contiguous; x += delta in place, then the norm of x -> [T, E]."""
    out = torch.empty_like(x)
    size = x.shape[1]
    block = triton.next_power_of_2(size)
    add_rms_norm_program[(x.shape[0],)](
        x, x if delta is None else delta, weight, out, size, eps,
        ADD=delta is not None, BLOCK=block, num_warps=min(max(block // 512, 1), 16),
    )  # fmt: skip
    return out


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up. gate_up [T, 2 I] contiguous -> [T, I]."""
    rows, double = gate_up.shape
    out = gate_up.new_empty((rows, double // 2))
    block = 1024
    grid = (rows, triton.cdiv(double // 2, block))
    swiglu_program[grid](gate_up, out, double // 2, BLOCK=block, num_warps=4)
    return out


def rotate_inplace(
    heads: torch.Tensor,
    count: int,
    weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> None:
    """Norm (with weight [count, D]) and rotate the first `count` heads of [T, N, D], contiguous
    per token. cos, sin [T, 1, D / 2], contiguous."""
    tokens, _, size = heads.shape
    lanes = triton.next_power_of_2(size // 2)
    some = max(min(triton.next_power_of_2(count), 1024 // lanes), 1)
    rotate_program[(tokens, triton.cdiv(count, some))](
        heads, heads if weight is None else weight, cos, sin, heads.stride(0), count, eps,
        HALF=size // 2, LANES=lanes, HEADS=some, NORM=weight is not None, num_warps=4,
    )  # fmt: skip


def quantise_rows(x: torch.Tensor, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] contiguous per row -> e4m3 [M, K], scale float32 [M]; see `fp8.quantise_slow`."""
    rows, size = x.shape
    q = torch.empty((rows, size), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(size)
    quantise_program[(rows,)](
        x, q, scale, x.stride(0), size, largest,
        BLOCK=block, num_warps=min(max(block // 512, 1), 16),
    )  # fmt: skip
    return q, scale
