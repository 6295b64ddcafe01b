"""Tiny random models of families that the decoder refuses, written as ordinary hub folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from preread.testing.models import write_byte_tokenizer

SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": 258,
}  # fmt: skip
HEAD = {"head_dim": 16}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 300,
    "short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)],
}  # fmt: skip
WINDOWS = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
LATENT = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "moe_intermediate_size": 32, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}  # fmt: skip
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "shared_expert_intermediate_size": 32,
}  # fmt: skip
GPT2 = {"vocab_size": 320, "n_positions": 2048, "n_embd": 64, "n_layer": 3, "n_head": 4}
STATE = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
ENDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 258}
# name -> (configuration class, its options)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("MistralConfig", SIZES | HEAD | {"sliding_window": 48}),
    "gemma3": ("Gemma3TextConfig", SIZES | HEAD | {"sliding_window": 32, "layer_types": WINDOWS}),
    "gemma2": ("Gemma2Config", SIZES | HEAD | {"sliding_window": 40}),
    "mixtral": ("MixtralConfig", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", SIZES | HEAD | SPARSE),
    "gpt2": ("GPT2Config", GPT2 | ENDS),
    "phi3": ("Phi3Config", SIZES | {"rope_parameters": LONGROPE,
                                    "original_max_position_embeddings": 300}),
    "dynamic": ("LlamaConfig", SIZES | {"max_position_embeddings": 2048, "rope_parameters": {
        "rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}}),
    "llama4": ("Llama4TextConfig", SIZES | HEAD | {
        "num_local_experts": 2, "attention_chunk_size": 64, "intermediate_size_mlp": 96}),
    "gpt_oss": ("GptOssConfig", SIZES | HEAD | {
        "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}),
    "deepseek": ("DeepseekV3Config", SIZES | LATENT),
    "bloom": ("BloomConfig", {"vocab_size": 320, "hidden_size": 64, "n_layer": 2, "n_head": 4}
              | ENDS),
    "gemma3n": ("Gemma3nTextConfig", SIZES | HEAD | {
        "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 320, "altup_num_inputs": 2,
        "hidden_size_per_layer_input": 8, "laurel_rank": 8, "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.0] * 4}),
    "gemma4": ("Gemma4TextConfig", SIZES | HEAD | {
        "sliding_window": 32, "layer_types": WINDOWS, "global_head_dim": 32,
        "vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 8}),
    "deepseek_v32": ("DeepseekV32Config", SIZES | LATENT | {
        "index_topk": 64, "index_n_heads": 2, "index_head_dim": 16}),
    "qwen3_next": ("Qwen3NextConfig", SIZES | HEAD | SPARSE | LINEAR),
    "mamba": ("MambaConfig", STATE | ENDS),
    "bert": ("BertConfig", {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2,
                            "num_attention_heads": 4, "intermediate_size": 96, "is_decoder": False,
                            "max_position_embeddings": 512} | {"pad_token_id": 0}),
}  # fmt: skip
RARE = ("gemma3n", "gemma4")  # layers without KV of their own; layers of two sizes
KEPT = ("mistral", "gemma3", "gemma2", "mixtral", "qwen3_moe", "gpt2", "phi3", "dynamic", "llama4",
        "gpt_oss", "deepseek", "bloom")  # fmt: skip


def write_foreign_model(path: Path, family: str, *, seed: int = 0, **overrides: Any) -> Path:
    """config.json, random weights and a byte-level tokenizer with a ChatML template."""
    kind, options = FAMILIES[family]
    config = getattr(transformers, kind)(**(options | overrides))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape)
            if "embed" in name or "wte" in name:  # small, or where tied a token repeats itself
                weight.copy_(noise * 0.05)
            elif weight.ndim > 1 and "conv" not in name:
                weight.copy_(noise * 0.2)
            elif "norm" in name or "ln_" in name or "bias" in name:
                weight.add_(noise * 0.1)
    module.save_pretrained(path)
    write_byte_tokenizer(path)
    return path
