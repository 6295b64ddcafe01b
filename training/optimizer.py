"""Muon for the matrices, AdamW for the rest.

Muon replaces each matrix's averaged gradient by the nearest orthogonal matrix (five Newton-Schulz
steps in bf16), scaled so that one learning rate fits both. Matrices of one shape are updated as
one batch.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonal(x: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly, of a batch (N, R, C)."""
    tall = x.shape[-2] > x.shape[-1]
    y = x.bfloat16()
    y = y.mT if tall else y
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = y @ y.mT
        y = 3.4445 * y + (-4.7750 * square + 2.0315 * square @ square) @ y
    out: Tensor = y.mT if tall else y
    return out


class Optimizer:
    """Both optimizers with one learning rate."""

    def __init__(self, model: nn.Module, muon: bool = True, decay: float = 0.02) -> None:
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        self.muon = matrices if muon else []
        chosen = {id(p) for p in self.muon}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        fused = next(model.parameters()).is_cuda
        self.adam = torch.optim.AdamW(
            rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=fused
        )
        self.decay = decay
        self.groups: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for p in self.muon:
            self.groups[tuple(p.shape)].append(p)
        self.momentum = {
            shape: torch.zeros(len(ps), *shape, device=ps[0].device)
            for shape, ps in self.groups.items()
        }

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update with a learning rate."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        for shape, parameters in self.groups.items():
            grads = torch.stack([p.grad for p in parameters if p.grad is not None])
            average = self.momentum[shape].mul_(0.95).add_(grads, alpha=0.05)
            update = orthogonal(grads.mul_(0.05).add_(average, alpha=0.95)).float()
            scale = 0.2 * max(shape) ** 0.5
            torch._foreach_mul_(tuple(parameters), 1 - rate * self.decay)
            torch._foreach_add_(tuple(parameters), update.unbind(0), alpha=-rate * scale)

    def zero(self, parameters: Iterable[nn.Parameter]) -> None:
        """Forget the gradients."""
        for p in parameters:
            p.grad = None
