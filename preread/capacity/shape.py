"""How large a model is, from its `config.json` alone: no weights, no torch.

For the families of the decoder the count is exact. For others it comes from the keys that most
models use, and `notes` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preread.errors import ConfigError, UnsupportedModel

EXACT = ("llama", "mistral", "qwen2", "qwen3")  # the decoder's families, see docs/models.md
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of a weight in products, by model.weights_precision.
WEIGHT_BYTES = {"int8": 1, "w8a8": 1, "fp8": 1}
KV_PRECISIONS = ("full", "int8", "fp8")  # of model.kv_precision; see kernels/kv.py
KV_SCALE_BYTES = 4  # of a head of KV in eight bits, keys or values
_HINT = "Give a causal language model with a published config.json."


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes in elements, limit in tokens. kv_layers: layers that keep KV; parameters: all weights;
    matrices: those that every step reads, without embedding and head; active: of those, multiplied
    for each token (fewer in a mixture of experts); head: the last product; dtype: as published."""

    layers: int
    kv_layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    limit: int
    parameters: int
    matrices: int
    active: int
    dtype: str
    notes: tuple[str, ...] = ()

    @property
    def head(self) -> int:
        return self.vocab * self.hidden

    @property
    def attention_width(self) -> int:
        """Query heads x head size, of all layers that attend."""
        return self.kv_layers * self.heads * self.head_dim

    def weights_size(self, dtype: str, precision: str) -> int:
        """Bytes of all weights. Embeddings stay in dtype; a tied head that does not is a copy."""
        if (small := weight_bytes(dtype, precision)) == ITEMSIZE[dtype]:
            return self.parameters * small
        products = self.matrices + self.head
        tied = self.parameters < products + self.head
        rest = self.parameters - products + (self.head if tied else 0)
        return rest * ITEMSIZE[dtype] + products * small

    def kv_token_bytes(self, dtype: str, precision: str = "full") -> int:
        """KV of one token: K and V of every KV head of every layer (not of every query head).
        precision: model.kv_precision. Raises ConfigError for an unknown one."""
        if precision not in KV_PRECISIONS:
            raise ConfigError(
                f"kv_precision = {precision!r}.", hint=f"Give one of {', '.join(KV_PRECISIONS)}."
            )
        full = precision == "full"
        head = self.head_dim * ITEMSIZE[dtype] if full else self.head_dim + KV_SCALE_BYTES
        return 2 * self.kv_layers * self.kv_heads * head


def weight_bytes(dtype: str, precision: str) -> int:
    """Bytes of a weight that is multiplied by; "full": as in dtype."""
    return WEIGHT_BYTES.get(precision, ITEMSIZE[dtype])


def read_shape(published: Mapping[str, Any], path: Path) -> Shape:
    """The shape of a `config.json`. path: for messages. Raises UnsupportedModel naming the key."""
    raw = {**published, **(published.get("text_config") or {})}
    family = str(raw.get("model_type"))
    if raw.get("kv_lora_rank"):
        raise UnsupportedModel(f"{path}: kv_lora_rank: its KV is compressed.", hint=_HINT)
    layers, hidden = _whole(raw, "num_hidden_layers", path), _whole(raw, "hidden_size", path)
    heads = _whole(raw, "num_attention_heads", path)
    kv_heads = int(raw.get("num_key_value_heads") or heads)
    head_dim = int(raw.get("head_dim") or (128 if family == "qwen3" else hidden // heads))
    kinds = raw.get("layer_types") or ["full_attention"] * layers
    keeping = sum("attention" in kind and "linear" not in kind for kind in kinds)
    shape = Shape(
        layers=layers,
        kv_layers=keeping,
        hidden=hidden,
        inner=_whole(raw, "intermediate_size", path),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=_whole(raw, "vocab_size", path),
        limit=_whole(raw, "max_position_embeddings", path),
        parameters=0,
        matrices=0,
        active=0,
        dtype=_dtype(published, raw),
        notes=_notes(raw, family),
    )
    return _counted(shape, raw, family)


def _counted(shape: Shape, raw: Mapping[str, Any], family: str) -> Shape:
    """With the numbers of weights: matrices as published, then biases and norms."""
    width, q = shape.hidden, shape.heads * shape.head_dim
    kv = shape.kv_heads * shape.head_dim
    attention = width * (q + 2 * kv) + q * width
    resident, active = _mlp(raw, width, shape.inner)
    biases = (q + 2 * kv) * bool(family == "qwen2" or raw.get("attention_bias"))
    biases += width * bool(family != "qwen2" and raw.get("attention_bias"))
    biases += (2 * shape.inner + width) * bool(raw.get("mlp_bias"))
    norms = 2 * width + 2 * shape.head_dim * (family == "qwen3")
    embeddings = shape.head * (1 if raw.get("tie_word_embeddings") else 2)
    matrices = shape.layers * (attention + resident)
    return replace(
        shape,
        matrices=matrices,
        active=shape.layers * (attention + active),
        parameters=matrices + shape.layers * (biases + norms) + embeddings + width,
    )


def _mlp(raw: Mapping[str, Any], width: int, inner: int) -> tuple[int, int]:
    """Weights of one layer's MLP: (all of them, those that one token meets)."""
    keys = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((int(raw[key]) for key in keys if raw.get(key)), 0)
    if not experts:
        return 3 * width * inner, 3 * width * inner
    one = 3 * width * int(raw.get("moe_intermediate_size") or inner)
    shared = 3 * width * int(raw.get("shared_expert_intermediate_size") or 0)
    shared += one * int(raw.get("n_shared_experts") or 0)
    router = width * experts
    chosen = int(raw.get("num_experts_per_tok") or experts)
    return experts * one + shared + router, chosen * one + shared + router


def _whole(raw: Mapping[str, Any], key: str, path: Path) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UnsupportedModel(
            f"{path}: {key} = {value!r}, expected a positive number.", hint=_HINT
        )
    return value


def _dtype(published: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    named = (raw.get("dtype"), raw.get("torch_dtype"), published.get("torch_dtype"))
    return next((name for name in named if name in ITEMSIZE), "float32")


def _notes(raw: Mapping[str, Any], family: str) -> tuple[str, ...]:
    notes = []
    if family not in EXACT:
        notes.append(
            f"model_type {family} is not one of the decoder's: sizes are from the usual keys, and "
            "transformers computes it one sequence at a time, slower than said here"
        )
    if raw.get("quantization_config"):
        notes.append("its published weights are quantised: planned as if they were not")
    return tuple(notes)
