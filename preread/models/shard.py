"""A model over several devices: tensor parallel (Shoeybi et al. 2019, arXiv 1909.08053).

Each rank has some KV heads with the query heads that share them, and some of the MLP's inner
columns: the projections in are cut by rows, those out by columns, so that a layer needs two sums
over the ranks. Embeddings and norms are everywhere, the LM head is on rank 0 alone.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from preread.errors import ConfigError
from preread.kernels.linear import Linear, MakeLinear
from preread.models.config import ModelConfig
from preread.models.decoder import PackedDecoder
from preread.models.interface import Attend
from preread.models.layers import Slot, layout

_ALIGNED = 64  # of the inner size: what the products of tensor cores take in any precision


class Collective(Protocol):
    """What the ranks of a group do together, in the same order on each."""

    def share(self, tokens: torch.Tensor) -> torch.Tensor:
        """Rank 0's token ids [T], on every rank. Begins a forward pass."""
        ...

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, E] of all ranks, added; in place."""
        ...


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a model that rank `rank` of `size` has."""

    rank: int = 0
    size: int = 1

    def kv_heads(self, config: ModelConfig) -> tuple[int, int]:
        """KV heads [g, h). Raises ConfigError where there is none for every rank."""
        if self.size > config.kv_heads:
            raise ConfigError(
                f"model.gpus = {self.size}, but the model has {config.kv_heads} KV heads.",
                hint=f"Set model.gpus to {config.kv_heads} or less.",
            )
        return _share(config.kv_heads, self.rank, self.size)

    def config(self, config: ModelConfig) -> ModelConfig:
        """The shape of this part."""
        g, h = self.kv_heads(config)
        i, j = self._inner(config)
        fold = config.heads // config.kv_heads
        return replace(config, heads=(h - g) * fold, kv_heads=h - g, intermediate_size=j - i)

    def layout(self, config: ModelConfig) -> dict[str, Slot]:
        """Resident tensors of this part; see `layers.layout`."""
        slots = layout(self.config(config))
        return {key: slot for key, slot in slots.items() if key != "head" or not self.rank}

    def cut(
        self, config: ModelConfig, key: str, part: int, published: torch.Tensor
    ) -> torch.Tensor:
        """What this rank keeps of published tensor number `part` of a resident one."""
        field = key.rpartition(".")[2]
        if self.size == 1:
            return published
        if field in ("qkv", "qkv_bias"):
            first, last = self._heads(config) if part == 0 else self.kv_heads(config)
            return published[first * config.head_dim : last * config.head_dim]
        if field in ("gate_up", "gate_up_bias"):
            first, last = self._inner(config)
            return published[first:last]
        if field == "out":
            first, last = self._heads(config)
            return published[:, first * config.head_dim : last * config.head_dim]
        if field == "down":
            first, last = self._inner(config)
            return published[:, first:last]
        if field in ("out_bias", "down_bias") and self.rank:  # added once
            return torch.zeros_like(published)
        return published

    def of(self, config: ModelConfig, key: str, slot: Slot, whole: torch.Tensor) -> torch.Tensor:
        """The same of a whole resident tensor."""
        if self.size == 1:
            return whole
        parts = torch.split(whole, [rows for _, rows in slot.parts])
        return torch.cat([self.cut(config, key, n, part) for n, part in enumerate(parts)])

    def _heads(self, config: ModelConfig) -> tuple[int, int]:
        fold = config.heads // config.kv_heads
        g, h = self.kv_heads(config)
        return g * fold, h * fold

    def _inner(self, config: ModelConfig) -> tuple[int, int]:
        blocks, rest = divmod(config.intermediate_size, _ALIGNED)
        if rest or blocks < self.size:
            return _share(config.intermediate_size, self.rank, self.size)
        first, last = _share(blocks, self.rank, self.size)
        return first * _ALIGNED, last * _ALIGNED


WHOLE = Shard()


def _share(count: int, rank: int, size: int) -> tuple[int, int]:
    return count * rank // size, count * (rank + 1) // size


class ShardDecoder(PackedDecoder):
    """One rank's part of a decoder. `hidden` is the same on every rank; logits are for rank 0."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: MutableMapping[str, torch.Tensor],
        linear: MakeLinear,
        collective: Collective,
    ) -> None:
        """config, tensors: of the shard."""
        super().__init__(
            config, tensors, linear, summed=lambda product: _Summed(product, collective)
        )
        self._collective = collective

    def hidden(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        return super().hidden(self._collective.share(tokens), positions, attend)


class _Summed:
    """A product of which every rank has some columns."""

    __slots__ = ("_collective", "_product")

    def __init__(self, product: Linear, collective: Collective) -> None:
        self._product, self._collective = product, collective

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._collective.sum(self._product(x))
