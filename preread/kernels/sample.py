"""Choosing the next token. R rows, V vocabulary.

A row's random numbers depend on its own seed and step alone (a counter-based generator), never on
which rows it is batched with, so the same seed writes the same text alone and in a crowd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray


def uniform(seeds: NDArray[np.uint64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) per row: SplitMix64 (Steele, Lea, Flood 2014) of seed and step."""
    with np.errstate(over="ignore"):
        x = _mix(seeds) + (steps.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        return (_mix(x) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    numbers: torch.Tensor,
) -> torch.Tensor:
    """Sample each row by inverse CDF. logits [R, V] float32; temperature, top_k, top_p, numbers
    [R]; temperature 0 is the arg-max, top_k 0 and top_p 1 are off -> int64 [R].

    Tokens are ranked by logit (ties: lower id first); top_k keeps the first k, then top_p the
    shortest head of them whose probability reaches p; `numbers` in [0, 1) picks among the kept.
    """
    heat = temperature.clamp_min(1e-6).double()
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    probs = (values.double() / heat[:, None]).softmax(-1)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    limit = torch.where(top_k > 0, top_k, logits.shape[-1])
    probs = probs.masked_fill(rank >= limit[:, None], 0.0)
    before = probs.cumsum(-1) - probs
    keep = (before < (top_p.double() * probs.sum(-1))[:, None]) | (rank == 0)
    reach = probs.masked_fill(~keep, 0.0).cumsum(-1)
    spot = (reach <= (numbers.double() * reach[:, -1])[:, None]).sum(-1)
    spot = torch.minimum(spot, keep.sum(-1) - 1)
    spot = spot.masked_fill(temperature == 0, 0)
    return order.gather(-1, spot[:, None])[:, 0]


def draw_reference(
    logits: NDArray[np.float64], temperature: float, top_k: int, top_p: float, number: float
) -> int:
    """The slow obvious twin of `draw`, one row."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if temperature == 0:
        return order[0]
    order = order[: top_k or len(order)]
    weights = [float(np.exp((logits[i] - logits[order[0]]) / temperature)) for i in order]
    kept: list[float] = []
    for weight in weights:
        if kept and sum(kept) >= top_p * sum(weights):
            break
        kept.append(weight)
    reach = 0.0
    for i, weight in zip(order, kept, strict=False):
        reach += weight
        if reach > number * sum(kept):
            return i
    return order[len(kept) - 1]
