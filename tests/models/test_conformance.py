"""The decoder against transformers on small random models of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from preread.testing.models import forward, greedy, load_decoder, write_tiny_model

transformers = pytest.importorskip("transformers")

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {"kv_heads": 4, "rms_norm_eps": 1e-5}),
    "llama3": ("llama", {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0}),
    "llama3-new-style": ("llama", {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 500000.0}}),
    "llama-linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"head_dim": 32, "rope_theta": 1e6}),
    "qwen2": ("qwen2", {"rope_theta": 1e6}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"head_dim": 32, "rope_theta": 1e6}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
}
PROMPTS = [
    [7, 300, 12, 12, 99, 5, 61],
    [3],
    [int(i) for i in torch.randint(0, 320, (150,), generator=torch.Generator().manual_seed(1))],
    [250, 251, 252],
]


def both(case: str, path: Path, dtype: str = "float32") -> tuple[Any, Any]:
    family, options = CASES[case]
    folder = write_tiny_model(path, family, **options)  # type: ignore[arg-type]
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    return load_decoder(folder, dtype), oracle.eval()


@torch.inference_mode()
def oracle_logits(oracle: Any, prompt: list[int]) -> torch.Tensor:
    logits: torch.Tensor = oracle(torch.tensor([prompt])).logits[0].float()
    return logits


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_in_fp32_also_in_a_packed_batch(case: str, tmp_path: Path) -> None:
    decoder, oracle = both(case, tmp_path)
    packed = forward(decoder, PROMPTS)
    for prompt, rows in zip(PROMPTS, packed, strict=True):
        torch.testing.assert_close(rows, oracle_logits(oracle, prompt), atol=1e-4, rtol=0)
        [alone] = forward(decoder, [prompt])
        torch.testing.assert_close(rows, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_64_greedy_tokens_agree_in_a_packed_batch(case: str, tmp_path: Path) -> None:
    decoder, oracle = both(case, tmp_path)
    for prompt, ours in zip(PROMPTS, greedy(decoder, PROMPTS, 64), strict=True):
        theirs = oracle.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=64,
            min_new_tokens=64,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert ours == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["llama3", "mistral", "qwen2", "qwen3"])
def test_half_precision_is_as_near_to_fp32_as_transformers_is(
    case: str, dtype: str, tmp_path: Path
) -> None:
    decoder, oracle = both(case, tmp_path, dtype)
    truth_decoder = load_decoder(tmp_path, "float32")
    ours, theirs = [], []
    for prompt in PROMPTS:
        [truth] = forward(truth_decoder, [prompt])
        ours.append((forward(decoder, [prompt])[0] - truth).flatten())
        theirs.append((oracle_logits(oracle, prompt) - truth).flatten())
    assert torch.cat(theirs).norm() > 0
    assert torch.cat(ours).norm() <= 1.25 * torch.cat(theirs).norm()
