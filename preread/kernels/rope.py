"""Rotary positions (Su et al. 2021) in the half-split layout of the published checkpoints: element
j of a head is rotated with element j + D/2.

Angles are computed in fp32 from explicit positions and rounded to the model's dtype afterwards, the
way transformers does it, so that bf16 agrees as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

RopeKind = Literal["default", "linear", "llama3"]


@dataclass(frozen=True, slots=True)
class Rope:
    """Frequencies of a model. factor: linear and llama3; the last three: llama3 alone."""

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """fp32 [head_dim / 2], on the CPU. The order of operations is that of transformers'
    modeling_rope_utils, for the last bit: at position 100,000 it is the third digit."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    base: torch.Tensor = 1.0 / (rope.theta**exponent)
    if rope.kind == "default":
        return base
    if rope.kind == "linear":
        return base / rope.factor
    # llama3: long waves are stretched by `factor`, short ones kept, those between are blended.
    low = rope.original_max_positions / rope.low_freq_factor
    high = rope.original_max_positions / rope.high_freq_factor
    wave = 2 * math.pi / base
    scaled = torch.where(wave > low, base / rope.factor, base)
    blend = (rope.original_max_positions / wave - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * scaled / rope.factor + blend * scaled
    return torch.where((wave >= high) & (wave <= low), blended, scaled)


def rope_angles(
    positions: torch.Tensor, frequencies: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """positions int64 [T], frequencies fp32 [D/2] -> cos, sin, each [T, 1, D/2] in dtype."""
    angles = (positions.float()[:, None] * frequencies)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turn(
    before: tuple[torch.Tensor, torch.Tensor], after: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cos and sin that turn what was rotated by `before` into what `after` would have made of
    it: as complex numbers after / before, in float64, so that angles which were rounded to the
    model's dtype are undone and done as they were. All of one shape."""
    (c, s), (cos, sin) = ((x.double() for x in angles) for angles in (before, after))
    norm = c * c + s * s
    return (cos * c + sin * s) / norm, (sin * c - cos * s) / norm


def moved(
    k: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor],
    after: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Keys [T, N, D] that were rotated by `before` as if rotated by `after` (`rope_angles` of their
    old and new positions), in the type of k: exact up to one rounding of each key."""
    wide = torch.promote_types(k.dtype, torch.float32)
    cos, sin = (x.to(wide) for x in turn(before, after))
    return rotate(k.to(wide), cos, sin).to(k.dtype)


def moved_slow(
    k: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor],
    after: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """The twin in float64: each pair is solved for what it was before any rotation, then rotated
    anew. [T, N, D] -> [T, N, D] float64."""
    (c, s), half = (x.double() for x in before), k.shape[-1] // 2
    plain = torch.empty_like(k, dtype=torch.float64)
    for j in range(half):
        a, b = k[..., j].double(), k[..., j + half].double()
        norm = c[..., j] ** 2 + s[..., j] ** 2
        plain[..., j] = (a * c[..., j] + b * s[..., j]) / norm
        plain[..., j + half] = (b * c[..., j] - a * s[..., j]) / norm
    return rotate_slow(plain, after[0].double(), after[1].double())


def rotate_slow(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The definition, one pair of elements after the other. x [T, N, D] -> [T, N, D]."""
    half = x.shape[-1] // 2
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for j in range(half):
        a, b = x[..., j], x[..., j + half]
        c, s = cos[..., j], sin[..., j]
        out[..., j] = a * c - b * s
        out[..., j + half] = b * c + a * s
    return out


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Same, vectorised. The result is contiguous also where x is a view."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
