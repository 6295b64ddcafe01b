"""Sizes from a config.json are those of the model that is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preread.capacity.shape import read_shape
from preread.errors import UnsupportedModel
from preread.models.config import read_config
from preread.models.folder import read_json, resolve
from preread.models.layers import parameter_count
from preread.testing.models import write_tiny_model

PATH = Path("m/config.json")
BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {"model_type": "llama"},
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"model_type": "llama", "num_key_value_heads": None},
        {"model_type": "mistral", "sliding_window": None, "head_dim": 32},
        {"model_type": "qwen2"},
        {"model_type": "qwen3"},
        {"model_type": "qwen3", "attention_bias": True, "head_dim": 8},
    ],
)
def test_every_weight_of_the_decoder_is_counted(
    more: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    raw = {**BASE, **more, "tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config, shape = read_config(tmp_path), read_shape(raw, PATH)
    assert shape.parameters == parameter_count(config)
    assert (shape.kv_heads, shape.head_dim) == (config.kv_heads, config.head_dim)
    assert shape.notes == ()


def test_kv_of_a_token_is_what_the_engine_keeps(tmp_path: Path) -> None:
    import preread

    write_tiny_model(tmp_path, "qwen2", seed=3)
    shape = read_shape(read_json(tmp_path / "config.json"), PATH)
    with preread.open(str(tmp_path), dtype="float32") as engine:
        assert engine.info.kv_bytes_per_token == shape.kv_token_bytes("float32")
        assert engine.parameters == shape.parameters
        assert engine.info.limit == shape.limit


def test_the_bundled_model() -> None:
    shape = read_shape(read_json(resolve("reader") / "config.json"), PATH)
    assert shape.kv_token_bytes("bfloat16") == 2 * 8 * 2 * 64 * 2  # 2 KV heads, not 6
    assert shape.matrices + shape.head < shape.parameters < 15_000_000


def test_a_mixture_reads_all_experts_and_multiplies_some() -> None:
    raw = BASE | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    dense = read_shape(BASE | {"model_type": "llama"}, PATH)
    mixture = read_shape(raw, PATH)
    expert, router = 3 * 64 * 96, 64 * 8
    assert mixture.matrices - dense.matrices == 3 * (7 * expert + router)
    assert mixture.active - dense.active == 3 * (1 * expert + router)
    assert "mixtral" in mixture.notes[0]


def test_only_layers_that_attend_keep_kv() -> None:
    kinds = ["linear_attention", "full_attention", "sliding_attention"]
    shape = read_shape(BASE | {"model_type": "qwen3_next", "layer_types": kinds}, PATH)
    assert (shape.layers, shape.kv_layers) == (3, 2)


def test_the_text_side_of_a_wider_model_counts() -> None:
    outer = {"model_type": "gemma3", "text_config": BASE | {"model_type": "gemma3_text"}}
    assert read_shape(outer, PATH).hidden == 64


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hidden_size": None}, "hidden_size = None"),
        ({"vocab_size": "many"}, "vocab_size = 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
    ],
)
def test_what_is_missing_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        read_shape(BASE | {"model_type": "llama"} | wrong, PATH)
