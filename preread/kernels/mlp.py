"""SwiGLU (Shazeer 2020): silu(gate) * up, from one fused projection."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def swiglu_slow(gate_up: torch.Tensor) -> torch.Tensor:
    """The definition. gate_up [T, 2 I], the gate in the first half -> [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    wide = gate.float()
    return (wide * torch.sigmoid(wide)).to(gate.dtype) * up


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Same, with one temporary."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
