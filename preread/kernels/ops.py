"""The small operations between a decoder's products, behind one seam: stock torch ops, the slow
twins, and kernels of one pass each where there are some."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from preread.kernels.mlp import swiglu
from preread.kernels.norm import rms_norm
from preread.kernels.rope import rotate

Angles = tuple[torch.Tensor, torch.Tensor]  # cos, sin, as `rope_angles` makes them


class HeadNorm(NamedTuple):
    """Norm of single heads before they are rotated. weight [H + G, D]."""

    weight: torch.Tensor
    eps: float


class Ops(Protocol):
    """Shapes: T tokens, E hidden size, H query and G key/value heads of size D, I inner size."""

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """x [T, E] += delta, in place; -> the root-mean-square norm of x, [T, E]."""
        ...

    def rotate(
        self, heads: torch.Tensor, groups: int, norm: HeadNorm | None, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """heads [T, H + 2 G, D] -> q [T, H, D], k, v [T, G, D], q and k normed and rotated. May
        write to its input; the results are contiguous per token."""
        ...

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[T, 2 I] -> [T, I]."""
        ...


class StockOps:
    """Every device, every dtype."""

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        if delta is not None:
            x += delta
        return rms_norm(x, weight, eps)

    def rotate(
        self, heads: torch.Tensor, groups: int, norm: HeadNorm | None, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        count = heads.shape[1] - groups
        qk, v = heads.split_with_sizes((count, groups), dim=1)
        if norm is not None:
            qk = rms_norm(qk, norm.weight, norm.eps)
        q, k = rotate(qk, *angles).split_with_sizes((count - groups, groups), dim=1)
        return q, k, v

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        return swiglu(gate_up)


class FusedOps:
    """Triton kernels, on CUDA."""

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        from preread.kernels.cuda.elementwise import add_rms_norm

        return add_rms_norm(x, delta, weight, eps)

    def rotate(
        self, heads: torch.Tensor, groups: int, norm: HeadNorm | None, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from preread.kernels.cuda.elementwise import rotate_inplace

        count = heads.shape[1] - groups
        weight, eps = norm or (None, 0.0)
        rotate_inplace(heads, count, weight, eps, *angles)
        q, k, v = heads.split_with_sizes((count - groups, groups, groups), dim=1)
        return q, k, v

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        from preread.kernels.cuda.elementwise import swiglu

        return swiglu(gate_up)


def ops_for(device: torch.device, dtype: torch.dtype) -> Ops:
    """The fastest that are known to be right for a type on a device. The kernels sum in float32."""
    fused = device.type == "cuda" and dtype is not torch.float64
    return FusedOps() if fused else StockOps()
