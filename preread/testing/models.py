"""Tiny random models of every family, written as ordinary hub folders; textbook attention.

    folder = write_tiny_model(tmp_path / "m", "qwen3", seed=0)
    decoder = load_decoder(folder)
    logits = forward(decoder, [[1, 2, 3], [4, 5]])   # one [T_i, V] per sequence

transformers loads the folders too; nothing here imports it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from preread.kernels.linear import MakeLinear, pack
from preread.models.config import Family, read_config
from preread.models.decoder import PackedDecoder
from preread.models.detokenizer import byte_alphabet
from preread.models.layers import layout
from preread.models.weights import Checkpoint

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 256, 257, 258
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_ARCHITECTURE = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def write_tiny_model(
    path: Path,
    family: Family = "qwen3",
    *,
    seed: int = 0,
    vocab: int = 320,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    dtype: str = "float32",
    **overrides: Any,
) -> Path:
    """Write config, random weights, a byte-level tokenizer (ids 0-255 are bytes) and a ChatML
    template. overrides: further keys of config.json, e.g. rope_scaling, tie_word_embeddings,
    max_position_embeddings. vocab >= 259. Returns path."""
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": family,
        "architectures": [f"{_ARCHITECTURE[family]}ForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": family == "qwen2",
        "bos_token_id": None,
        "eos_token_id": 258,
        "torch_dtype": dtype,
    }
    if family == "mistral":
        config["sliding_window"] = None
    _write_json(path / "config.json", config | overrides)
    _write_weights(path, seed, dtype)
    write_byte_tokenizer(path)
    return path


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _write_weights(path: Path, seed: int, dtype: str) -> None:
    """Wide enough random weights (0.2, norms near 1, biases not 0) that the logits of different
    inputs differ clearly and that a forgotten bias or norm shows."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for slot in layout(read_config(path)).values():
        for name, shape in slot.published():
            noise = torch.randn(shape, generator=generator) * 0.2
            value = 1 + noise if name.endswith("norm.weight") else noise
            tensors[name] = value.to(getattr(torch, dtype))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def write_byte_tokenizer(path: Path, template: str | None = CHATML) -> None:
    """tokenizer.json (256 bytes, no merges, SPECIAL_TOKENS) and tokenizer_config.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {char: byte for byte, char in enumerate(byte_alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(path / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[2],
        "pad_token": SPECIAL_TOKENS[0],
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    if template is not None:
        settings["chat_template"] = template
    _write_json(path / "tokenizer_config.json", settings)


def load_decoder(
    path: Path,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    linear: MakeLinear = pack,
) -> PackedDecoder:
    """The decoder of a model folder, without text, identity or home. linear: the form of its
    products, by default the one that `load_model` takes."""
    config = read_config(path)
    tensors = Checkpoint(path, config).load(getattr(torch, dtype), torch.device(device))
    return PackedDecoder(config, tensors, linear)


class NaiveAttend:
    """Textbook causal attention over a packed batch; K and V of each sequence are kept, so that
    calling again continues the sequences. An `Attend` for oracles: slow, obvious, fp32 scores.

    lengths: new tokens of each sequence in the packed axis; set it before each forward.
    """

    def __init__(self, layers: int, sequences: int) -> None:
        self.lengths: list[int] = []
        self._kv: list[list[tuple[torch.Tensor, torch.Tensor] | None]] = [
            [None] * sequences for _ in range(layers)
        ]

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        rows = zip(*(x.split_with_sizes(self.lengths) for x in (q, k, v)), strict=True)
        return torch.cat([self._one(layer, i, *row) for i, row in enumerate(rows)])

    def kv(self, layer: int, sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V so far, each [tokens, G, D]."""
        kept = self._kv[layer][sequence]
        assert kept is not None
        return kept

    def _one(
        self, layer: int, sequence: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        if (kept := self._kv[layer][sequence]) is not None:
            k, v = torch.cat((kept[0], k)), torch.cat((kept[1], v))
        self._kv[layer][sequence] = (k, v)
        group = q.shape[1] // k.shape[1]
        wide_k, wide_v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, wide_k) * q.shape[-1] ** -0.5
        old = k.shape[0] - q.shape[0]
        future = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool, device=q.device)
        scores = scores.masked_fill(future.triu(old + 1), float("-inf"))
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        return torch.einsum("hqk,khd->qhd", weights, wide_v)


@torch.inference_mode()
def forward(
    decoder: PackedDecoder, sequences: Sequence[Sequence[int]], attend: NaiveAttend | None = None
) -> list[torch.Tensor]:
    """Run sequences of unequal length as one packed batch -> logits [T_i, V] of each. A given
    attend continues from what it has kept."""
    attend = attend or NaiveAttend(decoder.layers, len(sequences))
    attend.lengths = [len(s) for s in sequences]
    positions = []
    for i, sequence in enumerate(sequences):
        kept = attend._kv[0][i]
        old = 0 if kept is None else kept[0].shape[0]
        positions.append(torch.arange(old, old + len(sequence)))
    packed = torch.tensor([token for s in sequences for token in s], dtype=torch.int64)
    hidden = decoder.hidden(
        packed.to(decoder.device), torch.cat(positions).to(decoder.device), attend
    )
    return list(decoder.logits(hidden).float().split_with_sizes(attend.lengths))


def greedy(decoder: PackedDecoder, prompts: Sequence[Sequence[int]], steps: int) -> list[list[int]]:
    """`steps` arg-max tokens after each prompt, all prompts in one packed batch."""
    attend = NaiveAttend(decoder.layers, len(prompts))
    out: list[list[int]] = [[] for _ in prompts]
    step: Sequence[Sequence[int]] = prompts
    for _ in range(steps):
        logits = forward(decoder, step, attend)
        for row, rows in zip(out, logits, strict=True):
            row.append(int(rows[-1].argmax()))
        step = [row[-1:] for row in out]
    return out
