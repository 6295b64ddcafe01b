"""One decoder with flags for the Llama, Mistral, Qwen2 and Qwen3 families: `interface.Decoder`.

It knows nothing of caches, batches or masks: tokens of all sequences lie on one packed axis, their
positions are explicit, and attention is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import replace

import torch
from torch.nn import functional as F

from preread.kernels.linear import Linear, MakeLinear, PlainLinear, sensitive_form
from preread.kernels.ops import Angles, Ops, ops_for
from preread.kernels.rope import inverse_frequencies, rope_angles
from preread.models.config import ModelConfig
from preread.models.interface import Attend
from preread.models.layers import Layer, StepOps, attention_block, mlp_block


class PackedDecoder:
    """Weights on a device and the forward pass over them. No gradients: the tensors need none."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: MutableMapping[str, torch.Tensor],
        linear: MakeLinear = PlainLinear,
        ops: Ops | None = None,
        summed: Callable[[Linear], Linear] | None = None,
    ) -> None:
        """tensors: named and shaped by `layers.layout`, all of one dtype on one device; they are
        taken out as they are used. linear: the form in which the products keep their weights; a
        tied head that keeps another than the plain one is a copy of the embeddings. ops: what lies
        between the products, by default the fastest for the device. summed: what becomes of the
        products that lead out of attention and MLP, where others have a part in them."""
        self.config = config
        self._embed = tensors.pop("embed")
        head = self._embed if config.tied else tensors.pop("head", None)
        self._head = None if head is None else sensitive_form(linear)(head, None)
        self._norm = tensors.pop("norm")
        layers = (Layer.of(tensors, i, config, linear) for i in range(config.layers))
        self._layers = tuple(
            layer
            if summed is None
            else replace(layer, out=summed(layer.out), down=summed(layer.down))
            for layer in layers
        )
        self._ops = ops or ops_for(self.device, self.dtype)
        self._frequencies = inverse_frequencies(config.rope, config.head_dim).to(self.device)

    @property
    def layers(self) -> int:
        return self.config.layers

    @property
    def heads(self) -> int:
        return self.config.heads

    @property
    def kv_heads(self) -> int:
        return self.config.kv_heads

    @property
    def head_dim(self) -> int:
        return self.config.head_dim

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        return self.config.max_positions

    @property
    def dtype(self) -> torch.dtype:
        return self._embed.dtype

    @property
    def device(self) -> torch.device:
        return self._embed.device

    def angles(self, positions: torch.Tensor) -> Angles:
        """With which keys at `positions`, int64 [T] on the device, are rotated: cos and sin, each
        [T, 1, D / 2]."""
        return rope_angles(positions, self._frequencies, self.dtype)

    def hidden(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """tokens, positions: int32 or int64 [T] on the device -> [T, E] after the final norm.

        attend gets q, k and v as views with a stride per token: copy what you keep.
        """
        ops, eps = self._ops, self.config.norm_eps
        step = StepOps(ops, self.angles(positions), attend)
        x, delta = F.embedding(tokens, self._embed), None
        for index, layer in enumerate(self._layers):
            h = ops.add_norm(x, delta, layer.attn_norm, eps)
            h = ops.add_norm(
                x, attention_block(self.config, layer, index, h, step), layer.mlp_norm, eps
            )
            delta = mlp_block(layer, h, ops)
        return ops.add_norm(x, delta, self._norm, eps)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, E] -> [R, V] in the model's dtype."""
        assert self._head is not None, "this part of the model has no head"
        return self._head(hidden)
