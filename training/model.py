"""The training model: Qwen3's arithmetic over a flat batch, with Qwen3's parameter names.

Sequences lie one after the other in one row of T tokens; `branches.py` says which tokens see which.
On a GPU attention is flex attention, which skips the blocks that nobody sees; its twin is a dense
mask.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention


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


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q (T, H, D), k (T, G, D), v (T, G, D)) -> (T, H, D); it knows which tokens see which"""


def dense_attention(mask: Tensor) -> Attention:
    """The slow twin: a mask (T, T) and plain scores."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return out.transpose(0, 1)

    return attention


def flex(mask: BlockMask) -> Attention:
    """Flex attention over a block mask: blocks that nobody sees cost nothing."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        out: Tensor = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        return out[0].transpose(0, 1)

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
        attend: Attention,
    ) -> Tensor:
        """x (T, C) -> (T, C)."""
        tokens, size = x.shape[0], self.shape.head_dim
        q = rotate(self.q_norm(self.q_proj(x).view(tokens, -1, size)), *turn)
        k = rotate(self.k_norm(self.k_proj(x).view(tokens, -1, size)), *turn)
        v = self.v_proj(x).view(tokens, -1, size)
        out = attend(q.to(v.dtype), k.to(v.dtype), v)
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

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.self_attn = SelfAttention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        attend: Attention,
    ) -> Tensor:
        """x (T, C) -> (T, C)."""
        x = x + self._drop(self.self_attn(self.input_layernorm(x), turn, attend))
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Reader(nn.Module):
    """The decoder with tied embeddings."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.num_hidden_layers))
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

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attention) -> Tensor:
        """tokens (T,) at positions (T,) -> hidden states (T, C)."""
        turn = rotary(positions, self.shape)
        x = self.embed_tokens(tokens)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.bfloat16)
        for layer in self.layers:
            x = layer(x, turn, attend)
        return cast(Tensor, self.norm(x))

    def loss(
        self,
        tokens: Tensor,
        positions: Tensor,
        index: Tensor,
        weights: Tensor,
        mask: BlockMask | Tensor,
    ) -> Tensor:
        """Weighted cross entropy of the tokens after the places `index` (K,)."""
        attend = dense_attention(mask) if isinstance(mask, Tensor) else flex(mask)
        states = self.hidden(tokens, positions, attend)[index]
        logits = F.linear(states, self.embed_tokens.weight).float()
        each = F.cross_entropy(logits, tokens[index + 1], reduction="none")
        answers = weights > 0.06
        return torch.stack(
            [(each * weights).sum() / weights.sum(), (each * answers).sum() / answers.sum()]
        )
