"""The training model: Qwen3's arithmetic over a flat batch, with Qwen3's parameter names.

Sequences lie one after the other in one row of T tokens; `bounds` says where each starts.
Attention stays inside a sequence. On a GPU this is one variable-length kernel, elsewhere a slow
loop that serves as its twin.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model; the names follow Qwen3's config.json."""

    vocab_size: int = 5120
    hidden_size: int = 384
    intermediate_size: int = 1024
    num_hidden_layers: int = 8
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 200_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 16_384


Attention = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""(q (T, H, D), k (T, G, D), v (T, G, D), bounds (S+1,), longest) -> (T, H, D), causal inside each
sequence
"""


def loop_attention(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """The slow twin: one sequence at a time."""
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    edges = bounds.tolist()
    for start, stop in pairwise(edges):
        if stop > start:
            queries = q[start:stop].transpose(0, 1)
            keys = k[start:stop].repeat_interleave(group, 1).transpose(0, 1)
            values = v[start:stop].repeat_interleave(group, 1).transpose(0, 1)
            made = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            out[start:stop] = made.transpose(0, 1)
    return out


def flash_attention() -> Attention:
    """The variable-length flash kernel of this torch, whichever way it spells its arguments."""
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    extra: dict[str, Any] = (
        {"is_causal": True} if "is_causal" in names else {"window_size": (-1, 0)}
    )
    grouped = "enable_gqa" in names

    def attention(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
        options = dict(extra)
        if grouped:
            options["enable_gqa"] = True
        else:
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, **options)
        return cast(Tensor, out)

    return attention


def rotary(positions: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """cos and sin (T, D) of each position, in float32."""
    half = torch.arange(0, shape.head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * shape.rope_theta ** (-half / shape.head_dim)
    both = torch.cat([angles, angles], dim=-1)
    return both.cos(), both.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to (T, H, D)."""
    left, right = x.chunk(2, dim=-1)
    turned = torch.cat([-right, left], dim=-1)
    return x * cos[:, None].to(x.dtype) + turned * sin[:, None].to(x.dtype)


class SelfAttention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        wide, narrow = (
            shape.num_attention_heads * shape.head_dim,
            shape.num_key_value_heads * shape.head_dim,
        )
        self.q_proj = nn.Linear(shape.hidden_size, wide, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, narrow, bias=False)
        self.o_proj = nn.Linear(wide, shape.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, eps=shape.rms_norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_dim, eps=shape.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        bounds: Tensor,
        attend: Attention,
        longest: int,
    ) -> Tensor:
        """x (T, C) -> (T, C)."""
        tokens, size = x.shape[0], self.shape.head_dim
        q = rotate(self.q_norm(self.q_proj(x).view(tokens, -1, size)), *turn)
        k = rotate(self.k_norm(self.k_proj(x).view(tokens, -1, size)), *turn)
        v = self.v_proj(x).view(tokens, -1, size)
        out = attend(q.to(v.dtype), k.to(v.dtype), v, bounds, longest)
        return cast(Tensor, self.o_proj(out.reshape(tokens, -1)))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, C) -> (T, C)."""
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = SelfAttention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        bounds: Tensor,
        attend: Attention,
        longest: int,
    ) -> Tensor:
        """x (T, C) -> (T, C)."""
        x = x + self.self_attn(self.input_layernorm(x), turn, bounds, attend, longest)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


class Reader(nn.Module):
    """The decoder with tied embeddings."""

    def __init__(self, shape: Shape, attend: Attention = loop_attention) -> None:
        super().__init__()
        self.shape = shape
        self.attend = attend
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.apply(self._start)

    def _start(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, SelfAttention):
            nn.init.normal_(
                module.o_proj.weight, std=0.02 / (2 * self.shape.num_hidden_layers) ** 0.5
            )
        if isinstance(module, MLP):
            nn.init.normal_(
                module.down_proj.weight, std=0.02 / (2 * self.shape.num_hidden_layers) ** 0.5
            )

    def hidden(self, tokens: Tensor, bounds: Tensor, longest: int) -> Tensor:
        """tokens (T,) and bounds (S+1,) -> hidden states (T, C)."""
        place = torch.arange(tokens.shape[0], device=tokens.device)
        start = bounds[torch.searchsorted(bounds, place.to(bounds.dtype), right=True) - 1]
        turn = rotary(place - start, self.shape)
        x = self.embed_tokens(tokens)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.bfloat16)
        for layer in self.layers:
            x = layer(x, turn, bounds, self.attend, longest)
        return cast(Tensor, self.norm(x))

    def loss(
        self, tokens: Tensor, bounds: Tensor, index: Tensor, weights: Tensor, longest: int
    ) -> Tensor:
        """Weighted cross entropy of the tokens after the positions `index` (K,)."""
        states = self.hidden(tokens, bounds, longest)[index]
        logits = F.linear(states, self.embed_tokens.weight).float()
        each = F.cross_entropy(logits, tokens[index + 1], reduction="none")
        answers = weights > 0.06
        return torch.stack(
            [(each * weights).sum() / weights.sum(), (each * answers).sum() / answers.sum()]
        )
