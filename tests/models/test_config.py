from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preread.errors import BadCheckpoint, ModelNotFound, UnsupportedModel
from preread.models.config import ModelConfig, read_config
from preread.testing.models import write_tiny_model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(path: Path, family: str = "llama", without: str = "", **changes: Any) -> ModelConfig:
    """The config of a tiny model after changes to its file."""
    write_tiny_model(path, family)  # type: ignore[arg-type]
    file = path / "config.json"
    raw = json.loads(file.read_text()) | changes
    raw.pop(without, None)
    file.write_text(json.dumps(raw))
    return read_config(path)


def test_flags_of_the_families(tmp_path: Path) -> None:
    llama, mistral, qwen2, qwen3 = (
        read(tmp_path, family) for family in ("llama", "mistral", "qwen2", "qwen3")
    )
    assert [c.qkv_bias for c in (llama, mistral, qwen2, qwen3)] == [False, False, True, False]
    assert [c.out_bias for c in (llama, mistral, qwen2, qwen3)] == [False] * 4
    assert [c.qk_norm for c in (llama, mistral, qwen2, qwen3)] == [False, False, False, True]
    assert [c.tied for c in (llama, mistral, qwen2, qwen3)] == [False, False, True, False]
    biased = read(tmp_path, "llama", attention_bias=True, mlp_bias=True)
    assert (biased.qkv_bias, biased.out_bias, biased.mlp_bias) == (True, True, True)
    assert read(tmp_path, "qwen2", attention_bias=True).out_bias is False


def test_head_size_and_missing_keys(tmp_path: Path) -> None:
    assert read(tmp_path, "llama", head_dim=None).head_dim == 16
    assert read(tmp_path, "qwen3", without="head_dim").head_dim == 128
    assert read(tmp_path, "llama", without="num_key_value_heads").kv_heads == 4
    with pytest.raises(BadCheckpoint, match="num_key_value_heads"):
        read(tmp_path, "mistral", without="num_key_value_heads")
    with pytest.raises(BadCheckpoint, match="hidden_size"):
        read(tmp_path, without="hidden_size")
    with pytest.raises(BadCheckpoint, match="rms_norm_eps"):
        read(tmp_path, rms_norm_eps="small")
    with pytest.raises(BadCheckpoint, match="do not go together"):
        read(tmp_path, num_key_value_heads=3)


def test_end_tokens_of_the_generation_config_win(tmp_path: Path) -> None:
    assert read(tmp_path, eos_token_id=[5, 6]).eos_ids == (5, 6)
    assert read(tmp_path, eos_token_id=None).eos_ids == ()
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert read(tmp_path).eos_ids == (7, 8)
    (tmp_path / "generation_config.json").write_text('{"top_p": 0.9}')
    assert read(tmp_path, eos_token_id=9).eos_ids == (9,)
    for wrong in ('"</s>"', '[1, "</s>"]', "1.5", "true"):
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {wrong}}}')
        with pytest.raises(BadCheckpoint, match=r"generation_config\.json: eos_token_id"):
            read(tmp_path)


def test_rope_old_and_new_style(tmp_path: Path) -> None:
    old = read(tmp_path, rope_theta=5e5, rope_scaling=LLAMA3).rope
    new = read(tmp_path, rope_theta=None, rope_parameters=LLAMA3 | {"rope_theta": 5e5}).rope
    assert old == new
    assert (old.kind, old.theta, old.factor, old.original_max_positions) == ("llama3", 5e5, 8, 8192)
    assert read(tmp_path, without="rope_theta").rope.theta == 10_000
    linear = read(tmp_path, rope_scaling={"type": "linear", "factor": 4}).rope
    assert (linear.kind, linear.factor) == ("linear", 4.0)
    plain = {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 1.0}
    assert read(tmp_path, rope_parameters=plain).rope.theta == 7.0


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_type": "default", "mrope_section": [16, 24, 24]},
        {"full_attention": {"rope_type": "default"}},
        LLAMA3 | {"attention_factor": 1.2},
    ],
)
def test_other_rope_is_refused_by_name(tmp_path: Path, rope: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json: RoPE"):
        read(tmp_path, rope_scaling=rope)


@pytest.mark.parametrize("missing", ["factor", "low_freq_factor", "high_freq_factor"])
def test_incomplete_rope_is_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(BadCheckpoint, match="llama3"):
        read(tmp_path, rope_scaling={k: v for k, v in LLAMA3.items() if k != missing})


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("llama", {"model_type": "gemma2"}, "gemma2"),
        ("llama", {"model_type": None}, "model_type"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ("llama", {"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "code of its own"),
        ("llama", {"num_local_experts": 8}, "mixture"),
        ("qwen3", {"num_experts": 128}, "mixture"),
        ("llama", {"attn_logit_softcapping": 50.0}, "caps"),
        ("llama", {"final_logit_softcapping": 30.0}, "caps"),
        ("llama", {"logit_scale": 0.0625}, "scales"),
        ("llama", {"residual_multiplier": 0.22}, "residual_multiplier"),
        ("llama", {"invented_yesterday": "on"}, "invented_yesterday"),
        ("llama", {"sliding_window": 128}, "sliding"),
        ("mistral", {"sliding_window": 1024}, "sliding"),
        ("mistral", {"attention_bias": True}, "attention_bias"),
        ("qwen2", {"mlp_bias": True}, "mlp_bias"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 1024}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("llama", {"dtype": "float8_e4m3fn"}, "float8"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        read(tmp_path, family, **changes)
    assert "Choose a dense model" in str(caught.value)


def test_a_mistral_without_the_key_has_the_window_that_transformers_gives_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(UnsupportedModel, match="sliding_window = 4096"):
        read(tmp_path, "mistral", without="sliding_window", max_position_embeddings=32768)
    assert read(tmp_path, "mistral", without="sliding_window", max_position_embeddings=4096)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 4096}),  # as long as the longest prompt
        ("qwen2", {"sliding_window": 128, "use_sliding_window": False, "max_window_layers": 1}),
        ("qwen3", {"layer_types": ["full_attention", "full_attention"]}),
        ("llama", {"pretraining_tp": 2, "use_cache": True, "transformers_version": "4.0"}),
        ("llama", {"invented_yesterday": False, "another": None, "third": 0, "_private": 3}),
        ("qwen2", {"use_mrope": False, "temperature": 0.7, "attention_dropout": 0.1}),
    ],
)
def test_what_is_off_or_harmless_passes(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    assert read(tmp_path, family, **changes).family == family


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "llama",', "\xff\x00"])
def test_a_half_written_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        read_config(tmp_path)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        read_config(tmp_path)


def test_transformers_reads_the_same_config(tmp_path: Path) -> None:
    """What transformers writes out after reading our files is accepted and means the same."""
    transformers = pytest.importorskip("transformers")
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        ours = read(tmp_path, family, rope_theta=1e6)
        transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
        assert read_config(tmp_path / "again") == ours
