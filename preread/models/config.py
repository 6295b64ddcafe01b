"""`config.json` as published -> a frozen ModelConfig, or a refusal that names the key.

The rule: a key that is neither read here nor known to be harmless may change the maths, so unless
it is switched off (null, false, 0, empty) the model is refused and not approximated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from preread.errors import BadCheckpoint, UnsupportedModel
from preread.kernels.rope import Rope, RopeKind
from preread.models.folder import AGAIN, read_json

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
FAMILIES: tuple[Family, ...] = get_args(Family)
DTYPES = ("float32", "bfloat16", "float16")
_HINT = (
    "Choose a dense model of the Llama, Mistral, Qwen2 or Qwen3 family with full attention, "
    "in safetensors, not quantised."
)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the decoder computes. Sizes in elements, positions in tokens.

    out_bias: bias of the attention's output projection; eos_ids: every token that ends an answer;
    dtype: as published, None if the file does not say.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float
    rope: Rope
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    dtype: str | None


class _Published(BaseModel):
    """The keys that are read, as they stand in the file; all others land in `model_extra`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model_type: str
    architectures: list[str] | None = None
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    hidden_act: str = "silu"
    max_position_embeddings: PositiveInt
    rms_norm_eps: PositiveFloat
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: PositiveFloat | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    sliding_window: int | None = None
    use_sliding_window: bool = False
    layer_types: list[str] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    torch_dtype: str | None = None
    dtype: str | None = None


# Book-keeping, training-only and text-generation keys: none of them touches the forward pass.
_HARMLESS = frozenset(
    """attention_dropout bad_words_ids begin_suppress_tokens classifier_dropout diversity_penalty
    do_sample early_stopping embd_pdrop encoder_no_repeat_ngram_size finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout id2label
    initializer_range keys_to_ignore_at_inference label2id length_penalty max_length
    max_new_tokens max_sequence_length max_window_layers min_length no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature
    tokenizer_class top_k top_p torchscript transformers_version typical_p unk_token_id
    unsloth_fixed unsloth_version use_bfloat16 use_cache""".split()
)
_REASONS = {
    "quantization_config": "its weights are quantised",
    "compression_config": "its weights are compressed",
    "auto_map": "it runs code of its own",
    "num_experts": "it is a mixture of experts",
    "num_local_experts": "it is a mixture of experts",
    "num_experts_per_tok": "it is a mixture of experts",
    "attn_logit_softcapping": "it caps its attention scores",
    "final_logit_softcapping": "it caps its logits",
    "logit_scale": "it scales its logits",
    "logits_scaling": "it scales its logits",
    "partial_rotary_factor": "it rotates a part of each head only",
    "sliding_window": "it attends through a sliding window",
}


def read_config(folder: Path) -> ModelConfig:
    """Read `config.json` (and the end tokens of `generation_config.json`, which win).

    Raises ModelNotFound, BadCheckpoint (missing or ill-typed keys), UnsupportedModel.
    """
    path = folder / "config.json"
    raw = read_json(path)
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModel(
            f"{path}: model_type {family!r} is not one that the decoder computes.", hint=_HINT
        )
    try:
        published = _Published.model_validate(raw)
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise BadCheckpoint(f"{path}: {key}: {first['msg']}.", hint=AGAIN) from exc
    _refuse(path, published)
    ends = _ends(folder / "generation_config.json")
    return _convert(path, family, published, published.eos_token_id if ends is None else ends)


def _ends(path: Path) -> int | list[int] | None:
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if any(type(i) is not int for i in ids):
        raise BadCheckpoint(f"{path}: eos_token_id = {ends!r} is no token id.", hint=AGAIN)
    return ends


def _refuse(path: Path, published: _Published) -> None:
    for key, value in (published.model_extra or {}).items():
        if value and key not in _HARMLESS and not key.startswith("_"):
            reason = _REASONS.get(key, "unknown to the decoder, and it could change the maths")
            raise UnsupportedModel(f"{path}: {key} = {value!r}: {reason}.", hint=_HINT)
    expected = {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
    }[published.model_type]
    if published.architectures and expected not in published.architectures:
        raise UnsupportedModel(
            f"{path}: architectures = {published.architectures}, expected {expected}.", hint=_HINT
        )
    if published.hidden_act not in ("silu", "swish"):
        raise UnsupportedModel(
            f"{path}: hidden_act = {published.hidden_act!r}, expected 'silu'.", hint=_HINT
        )
    if window := _window(published):
        raise UnsupportedModel(f"{path}: {window}: {_REASONS['sliding_window']}.", hint=_HINT)
    biased = [k for k in ("attention_bias", "mlp_bias") if getattr(published, k)]
    for key in biased:
        if (published.model_type, key) not in _BIASES:
            raise UnsupportedModel(
                f"{path}: {key} = True is unknown in the {published.model_type} family.", hint=_HINT
            )


# Qwen2 always has the bias on q, k and v; the key says nothing new there.
_BIASES = {
    ("llama", "attention_bias"),
    ("llama", "mlp_bias"),
    ("qwen2", "attention_bias"),
    ("qwen3", "attention_bias"),
}


def _window(published: _Published) -> str:
    """The key that switches a sliding window on, or an empty string."""
    if any(kind != "full_attention" for kind in published.layer_types or ()):
        return f"layer_types = {sorted(set(published.layer_types or ()))}"
    if published.use_sliding_window:
        return "use_sliding_window = True"
    in_use = published.model_type in ("llama", "mistral")  # the Qwen families have a switch for it
    window = published.sliding_window
    if published.model_type == "mistral" and "sliding_window" not in published.model_fields_set:
        window = 4096  # what transformers takes where the key is missing
    if in_use and window is not None and window < published.max_position_embeddings:
        return f"sliding_window = {window}"
    return ""


def _convert(
    path: Path, family: Family, published: _Published, eos: int | list[int] | None
) -> ModelConfig:
    heads = published.num_attention_heads
    kv_heads = published.num_key_value_heads
    if kv_heads is None:
        if family != "llama":  # elsewhere the default differs between releases of transformers
            raise BadCheckpoint(f"{path}: num_key_value_heads is missing.", hint=AGAIN)
        kv_heads = heads
    head_dim = published.head_dim or (128 if family == "qwen3" else published.hidden_size // heads)
    if heads % kv_heads or head_dim % 2:
        raise BadCheckpoint(
            f"{path}: {heads} heads, {kv_heads} key/value heads of {head_dim} do not go together.",
            hint=AGAIN,
        )
    dtype = published.dtype or published.torch_dtype
    if dtype is not None and dtype not in DTYPES:
        raise UnsupportedModel(f"{path}: dtype = {dtype!r}, expected {DTYPES}.", hint=_HINT)
    return ModelConfig(
        family=family,
        vocab_size=published.vocab_size,
        hidden_size=published.hidden_size,
        intermediate_size=published.intermediate_size,
        layers=published.num_hidden_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=published.max_position_embeddings,
        norm_eps=published.rms_norm_eps,
        rope=_rope(path, published),
        qkv_bias=family == "qwen2" or published.attention_bias,
        out_bias=family != "qwen2" and published.attention_bias,
        mlp_bias=published.mlp_bias,
        qk_norm=family == "qwen3",
        tied=published.tie_word_embeddings,
        bos_id=published.bos_token_id,
        eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        dtype=dtype,
    )


_ROPE_KEYS: dict[RopeKind, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
}


def _rope(path: Path, published: _Published) -> Rope:
    """Old style: rope_theta and rope_scaling; new style: rope_parameters. If both are there, the
    old one wins, as in transformers."""
    given = dict(published.rope_scaling or published.rope_parameters or {})
    legacy = given.pop("type", None)
    named = given.pop("rope_type", None) or legacy or "default"
    kind = next((kind for kind in _ROPE_KEYS if kind == named), None)
    if kind is None:
        raise UnsupportedModel(f"{path}: RoPE of type {named!r} is not computed.", hint=_HINT)
    theta = given.pop("rope_theta", None) or published.rope_theta or 10_000.0
    original = given.pop("original_max_position_embeddings", published.max_position_embeddings)
    if given.get("partial_rotary_factor") == 1:
        del given["partial_rotary_factor"]
    if kind == "default":
        given.pop("factor", None)  # transformers ignores it there
    if unknown := sorted(given.keys() - _ROPE_KEYS[kind]):
        raise UnsupportedModel(
            f"{path}: RoPE key {unknown[0]} = {given[unknown[0]]!r} is unknown for type {kind!r}.",
            hint=_HINT,
        )
    try:
        numbers = {key: float(given[key]) for key in _ROPE_KEYS[kind]}
        return Rope(
            theta=float(theta),
            kind=kind,
            factor=numbers.get("factor", 1.0),
            low_freq_factor=numbers.get("low_freq_factor", 1.0),
            high_freq_factor=numbers.get("high_freq_factor", 4.0),
            original_max_positions=int(original) if kind == "llama3" else 0,
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise BadCheckpoint(
            f"{path}: RoPE of type {kind!r} needs numbers for {sorted(_ROPE_KEYS[kind])}.",
            hint=AGAIN,
        ) from exc
