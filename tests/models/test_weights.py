from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from preread.errors import BadCheckpoint, PrereadError, UnsupportedModel
from preread.models import weights
from preread.models.config import read_config
from preread.models.layers import layout, parameter_count
from preread.models.weights import Checkpoint, random_tensors
from preread.testing.models import load_decoder, write_tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", "qwen3", layers=1)


def rewrite(model: Path, **changes: torch.Tensor | None) -> None:
    """Change, add or (None) remove tensors; dots are written as `__`."""
    tensors = load_file(model / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, model / "model.safetensors")


def shard(model: Path) -> tuple[Path, Path]:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, model / file)
    index = {"weight_map": {name: file for file, half in halves.items() for name in half}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return model / "a.safetensors", model / "b.safetensors"


def load(model: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return Checkpoint(model, read_config(model)).load(dtype, CPU)


def test_every_tensor_is_in_its_place(model: Path) -> None:
    stored, resident = load_file(model / "model.safetensors"), load(model)
    at = "model.layers.0."
    for key, names in {
        "0.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "0.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "0.out": ["self_attn.o_proj"],
    }.items():
        expected = torch.cat([stored[f"{at}{name}.weight"] for name in names])
        assert torch.equal(resident[key], expected)
    assert torch.equal(resident["head"], stored["lm_head.weight"])
    config = read_config(model)
    assert sum(tensor.numel() for tensor in resident.values()) == parameter_count(config)
    assert sum(tensor.numel() for tensor in stored.values()) == parameter_count(config)


def test_shards_are_the_same_model(model: Path, tmp_path: Path) -> None:
    whole = load(model)
    shard(model)
    parts = load(model)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_dtype_is_converted_on_the_way(model: Path) -> None:
    whole, half = load(model), load(model, torch.bfloat16)
    assert all(torch.equal(whole[key].bfloat16(), half[key]) for key in whole)


def test_frequencies_and_a_stored_copy_of_tied_embeddings_are_harmless(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m", "qwen2", layers=1)
    rewrite(
        model,
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8),
        lm_head__weight=torch.zeros(320, 64),
    )
    assert "head" not in load(model)


@pytest.mark.parametrize(
    ("name", "tensor", "kind", "reason"),
    [
        ("model__norm__weight", None, BadCheckpoint, r"model\.norm\.weight is missing"),
        ("model__norm__weight", torch.ones(63), BadCheckpoint, r"\(63,\), not \(64,\)"),
        ("model__norm__weight", torch.ones(64).byte(), UnsupportedModel, "U8"),
        ("model__norm__weight", torch.ones(64).double(), UnsupportedModel, "F64"),
        ("model__extra__weight", torch.ones(3), UnsupportedModel, r"model\.extra\.weight"),
        (
            "model__layers__0__self_attn__q_proj__bias",
            torch.ones(64),
            UnsupportedModel,
            r"q_proj\.bias",
        ),
        (
            "model__layers__1__mlp__up_proj__weight",
            torch.ones(128, 64),
            UnsupportedModel,
            r"layers\.1",
        ),
    ],
)
def test_every_tensor_is_accounted_for(
    model: Path, name: str, tensor: torch.Tensor | None, kind: type[PrereadError], reason: str
) -> None:
    rewrite(model, **{name: tensor})
    with pytest.raises(kind, match=reason):
        load(model)


def test_files_that_are_missing_doubled_or_unsafe(model: Path) -> None:
    first, second = shard(model)
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(BadCheckpoint, match=r"b\.safetensors, which is missing"):
        load(model)
    second.write_bytes(kept)
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(BadCheckpoint, match=r"is also in a\.safetensors"):
        load(model)
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a')
    with pytest.raises(BadCheckpoint, match=r"index\.json"):
        load(model)
    (model / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="weight_map"):
        load(model)
    for file in model.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(BadCheckpoint, match=r"no \*\.safetensors"):
        load(model)
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(BadCheckpoint, match=r"pytorch_model\.bin: a pickle .* runs code"):
        load(model)


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1, -1000])
def test_a_truncated_file_is_named(model: Path, size: int) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: damaged or half-written"):
        load(model)


@pytest.mark.parametrize("header", [b"{", b"[]", b'{"a": {"dtype": "F32"}}', b"\xff" * 8])
def test_a_damaged_header_is_named(model: Path, header: bytes) -> None:
    file = model / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors"):
        load(model)


def test_weights_that_change_while_they_are_read(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = iter(range(100))
    monkeypatch.setattr(weights, "stamp", lambda file: next(marks))
    with pytest.raises(BadCheckpoint, match="changed"):
        load(model)


def test_random_weights_have_the_shapes_and_the_seed_decides(model: Path) -> None:
    config = read_config(model)
    a, b = (random_tensors(config, 3, torch.bfloat16, CPU) for _ in range(2))
    other = random_tensors(config, 4, torch.bfloat16, CPU)
    assert {key: tuple(t.shape) for key, t in a.items()} == {
        key: slot.shape for key, slot in layout(config).items()
    }
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["embed"], other["embed"])
    assert torch.equal(a["norm"], torch.ones(64, dtype=torch.bfloat16))
    assert a["0.qkv"].float().std() == pytest.approx(0.02, rel=0.1)


def test_the_decoder_says_what_it_is(model: Path) -> None:
    decoder = load_decoder(model, "bfloat16")
    assert (decoder.layers, decoder.heads, decoder.kv_heads, decoder.head_dim) == (1, 4, 2, 16)
    assert (decoder.vocab_size, decoder.max_positions) == (320, 4096)
    assert (decoder.dtype, decoder.device) == (torch.bfloat16, CPU)
    assert decoder.logits(torch.zeros(3, 64, dtype=torch.bfloat16)).dtype is torch.bfloat16
