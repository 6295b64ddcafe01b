"""The bundled reader as a GGUF file, and llama.cpp's own server on it (xllamacpp, gguf: neither is
a dependency; what needs them skips)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from safetensors import safe_open

READER = Path(__file__).parents[2] / "preread" / "assets" / "reader"
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_reader(path: Path) -> None:
    """The reader's weights (fp32), tokenizer and chat template in llama.cpp's format."""
    import gguf

    config = json.loads((READER / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "qwen3")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _vocabulary(writer, config)
    with safe_open(str(READER / "model.safetensors"), "pt") as weights:
        for name in weights.keys():  # it is no dict
            writer.add_tensor(_name(name), weights.get_tensor(name).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    tokenizer = json.loads((READER / "tokenizer.json").read_text())
    told = json.loads((READER / "tokenizer_config.json").read_text())
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    words = {i: word for word, i in tokenizer["model"]["vocab"].items()} | special
    kinds = gguf.TokenType
    tokens = [words.get(i, f"<unused{i}>") for i in range(config["vocab_size"])]
    types = [
        kinds.CONTROL if i in special else kinds.NORMAL if i in words else kinds.UNUSED
        for i in range(len(tokens))
    ]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")  # splits as the reader does
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(told["chat_template"])


def _name(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, inner = name.split(".", 3)
    return f"blk.{layer}.{NAMES[inner.removesuffix('.weight')]}.weight"


def serve(path: str, slots: int) -> None:
    """Run llama-server until killed; prints its URL."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.kv_unified = 4096, slots, True
    params.n_gpu_layers, params.port, params.warmup = 0, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.use_jinja = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
