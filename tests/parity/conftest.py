"""Tiny models of every family, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from preread.models.decoder import PackedDecoder
from preread.testing.models import load_decoder, write_tiny_model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama2": ("llama", {}),
    "llama3": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 500_000.0}),
    "mistral": ("mistral", {"kv_heads": 1}),
    "qwen2": ("qwen2", {"heads": 6, "hidden": 96}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}
WIDER = {"float32": "float64", "bfloat16": "float32", "float16": "float32"}

Load = Callable[[str, str], PackedDecoder]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        name: write_tiny_model(root / name, family, seed=i, **options)
        for i, (name, (family, options)) in enumerate(FAMILIES.items())
    }


@pytest.fixture(scope="session")
def load(folders: dict[str, Path]) -> Load:
    return cache(lambda family, dtype: load_decoder(folders[family], dtype))
