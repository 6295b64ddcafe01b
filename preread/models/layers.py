"""One decoder layer on a packed token axis, and where its weights come from.

`layout` is the one description of a model's tensors: what is resident, and which published tensors
are stacked in it. Loading, random initialisation, sizing and the test models all read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from preread.kernels.linear import Linear, MakeLinear, sensitive_form
from preread.kernels.ops import Angles, HeadNorm, Ops
from preread.models.config import ModelConfig
from preread.models.interface import Attend


class StepOps(NamedTuple):
    """What a forward pass needs beside weights and tokens."""

    ops: Ops
    angles: Angles
    attend: Attend


@dataclass(frozen=True, slots=True)
class Slot:
    """One resident tensor: the published `parts` (name, rows) stacked; columns 0 is a vector."""

    parts: tuple[tuple[str, int], ...]
    columns: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        rows = sum(rows for _, rows in self.parts)
        return (rows, self.columns) if self.columns else (rows,)

    def published(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each part as it stands in a checkpoint."""
        for name, rows in self.parts:
            yield name, (rows, self.columns) if self.columns else (rows,)


def layout(config: ModelConfig) -> dict[str, Slot]:
    """Resident name -> slot. Names of layer i are `i.<field of Layer>`."""
    width = config.hidden_size
    slots = {
        "embed": Slot((("model.embed_tokens.weight", config.vocab_size),), width),
        "norm": Slot((("model.norm.weight", width),)),
    }
    if not config.tied:
        slots["head"] = Slot((("lm_head.weight", config.vocab_size),), width)
    for i in range(config.layers):
        for field, slot in _layer_layout(config, f"model.layers.{i}"):
            slots[f"{i}.{field}"] = slot
    return slots


def _layer_layout(config: ModelConfig, at: str) -> Iterator[tuple[str, Slot]]:
    width, inner = config.hidden_size, config.intermediate_size
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sizes = {"q": q, "k": kv, "v": kv}
    qkv = tuple((f"{at}.self_attn.{name}_proj", rows) for name, rows in sizes.items())
    gate_up = ((f"{at}.mlp.gate_proj", inner), (f"{at}.mlp.up_proj", inner))
    out, down = ((f"{at}.self_attn.o_proj", width),), ((f"{at}.mlp.down_proj", width),)
    yield "attn_norm", Slot(((f"{at}.input_layernorm.weight", width),))
    yield "mlp_norm", Slot(((f"{at}.post_attention_layernorm.weight", width),))
    yield from _linear("qkv", qkv, width, config.qkv_bias)
    yield from _linear("out", out, q, config.out_bias)
    yield from _linear("gate_up", gate_up, width, config.mlp_bias)
    yield from _linear("down", down, inner, config.mlp_bias)
    if config.qk_norm:
        yield "q_norm", Slot(((f"{at}.self_attn.q_norm.weight", config.head_dim),))
        yield "k_norm", Slot(((f"{at}.self_attn.k_norm.weight", config.head_dim),))


def _linear(
    field: str, modules: tuple[tuple[str, int], ...], columns: int, bias: bool
) -> Iterator[tuple[str, Slot]]:
    yield field, Slot(tuple((f"{name}.weight", rows) for name, rows in modules), columns)
    if bias:
        yield f"{field}_bias", Slot(tuple((f"{name}.bias", rows) for name, rows in modules))


def parameter_count(config: ModelConfig) -> int:
    """Elements of all resident tensors (tied embeddings count once)."""
    return sum(math.prod(slot.shape) for slot in layout(config).values())


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer. Q, K and V are one projection, gate and up another: fewer and larger
    matrix products, and the input is read once. qk_norm [heads + kv_heads, D]: of every head."""

    attn_norm: torch.Tensor
    mlp_norm: torch.Tensor
    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    qk_norm: torch.Tensor | None = None

    @staticmethod
    def of(
        tensors: MutableMapping[str, torch.Tensor],
        index: int,
        config: ModelConfig,
        linear: MakeLinear,
    ) -> Layer:
        """Layer `index` of tensors named by `layout`, which are taken out: `linear` may keep them
        in another form, and there must never be two copies of the model."""

        def take(name: str) -> torch.Tensor:
            return tensors.pop(f"{index}.{name}")

        def product(name: str, form: MakeLinear = linear) -> Linear:
            return form(take(name), tensors.pop(f"{index}.{name}_bias", None))

        qk_norm = None
        if config.qk_norm:
            q, k = take("q_norm"), take("k_norm")
            qk_norm = torch.cat((q.expand(config.heads, -1), k.expand(config.kv_heads, -1)))
        return Layer(
            attn_norm=take("attn_norm"),
            mlp_norm=take("mlp_norm"),
            qkv=product("qkv"),
            out=product("out"),
            gate_up=product("gate_up"),
            down=product("down", sensitive_form(linear)),
            qk_norm=qk_norm,
        )


def attention_block(
    config: ModelConfig, layer: Layer, index: int, h: torch.Tensor, step: StepOps
) -> torch.Tensor:
    """h [T, E], normed -> what attention adds to the residual stream, [T, E]."""
    tokens, heads, kv_heads = h.shape[0], config.heads, config.kv_heads
    packed = layer.qkv(h).view(tokens, heads + 2 * kv_heads, config.head_dim)
    norm = None if layer.qk_norm is None else HeadNorm(layer.qk_norm, config.norm_eps)
    q, k, v = step.ops.rotate(packed, kv_heads, norm, step.angles)
    attended = step.attend(index, q, k, v)
    return layer.out(attended.reshape(tokens, heads * config.head_dim))


def mlp_block(layer: Layer, h: torch.Tensor, ops: Ops) -> torch.Tensor:
    """h [T, E], normed -> what the MLP adds to the residual stream, [T, E]."""
    return layer.down(ops.swiglu(layer.gate_up(h)))
