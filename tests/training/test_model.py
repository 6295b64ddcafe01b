"""The training model equals transformers' Qwen3."""

from pathlib import Path

import pytest
import torch

from training.export import hub_config, write
from training.model import Reader, Shape, dense_attention

transformers = pytest.importorskip("transformers")
SMALL = Shape(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
)


def test_logits_equal_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Reader(SMALL)
    config = transformers.Qwen3Config(
        **{k: v for k, v in hub_config(SMALL).items() if k not in ("architectures", "model_type")}
    )
    oracle = transformers.Qwen3ForCausalLM(config).eval()
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    missing, unexpected = oracle.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    oracle.tie_weights()
    first, second = torch.randint(3, 97, (40,)), torch.randint(3, 97, (23,))
    flat, places = torch.cat([first, second]), torch.cat([torch.arange(40), torch.arange(23)])
    own = (places * 0).index_fill(0, torch.arange(40, 63), 1)
    mask = (own[:, None] == own) & torch.ones(63, 63).tril().bool()
    with torch.no_grad():
        ours = model.hidden(flat, places, dense_attention(mask)) @ model.embed_tokens.weight.T
        theirs = torch.cat([oracle(first[None]).logits[0], oracle(second[None]).logits[0]])
    assert torch.allclose(ours, theirs, atol=1e-4)
    write(model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 100_000
