"""What is loaded through transformers, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.cache_utils import DynamicSlidingWindowLayer

from preread.errors import BadCheckpoint, PrereadError, UnsupportedModel, UsageError
from preread.foreign.examine import examine
from preread.foreign.load import load_foreign, wider
from preread.foreign.net import Ability, Net
from tests.foreign.conftest import Folder, Load
from tests.foreign.made import write_foreign_model


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return write_foreign_model(tmp_path / "m", "mistral")


def open_it(folder: Path, **options):
    return load_foreign(str(folder), **({"dtype": "float32", "device": "cpu"} | options))


def edit(folder: Path, **keys: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


def retensor(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_model_with_all_it_needs(load: Load, folder: Folder):
    model = load("gemma3")
    assert (model.net.limit, model.net.vocab_size, model.dtype) == (4096, 320, "float32")
    assert model.stop_ids == {258} and model.folder == folder("gemma3")
    assert model.net.parameters > 100_000 and not model.random
    logits = model.net.forward(np.arange(5, dtype=np.int32), keep=2)
    assert logits.shape == (2, 320) and logits.dtype == torch.float32


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: t.pop("model.norm.weight"), "model.norm.weight is missing"),
    (lambda t: t.update(stray=torch.zeros(3)), "stray has no place"),
    (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), "model.norm.weight|ismatch"),
])  # fmt: skip
def test_every_tensor_is_accounted_for(copy: Path, change, said: str):
    retensor(copy, change)
    with pytest.raises(BadCheckpoint, match=said):
        open_it(copy)


def test_a_truncated_file(copy: Path):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadCheckpoint):
        open_it(copy)


@pytest.mark.parametrize(("keys", "said"), [
    ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
    ({"is_encoder_decoder": True}, "encoder"),
    ({"model_type": "nobody-knows"}, "does not read it"),
    ({"model_type": "vit"}, "no causal language model"),
])  # fmt: skip
def test_refused_by_name(copy: Path, keys: dict[str, object], said: str):
    with pytest.raises(UnsupportedModel, match=said):
        open_it(edit(copy, **keys))


def test_an_adapter_beside_the_weights_is_refused(copy: Path):
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="adapter"):
        open_it(copy)


def test_a_pickle_is_refused(copy: Path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match="pickle"):
        open_it(copy)


def test_a_model_that_looks_ahead_is_refused(load: Load, folder: Folder):
    with pytest.raises(UnsupportedModel, match="left to right"):
        load("bert")


def test_every_refusal_says_what_to_do(copy: Path):
    with pytest.raises(PrereadError) as caught:
        open_it(edit(copy, model_type="vit"))
    assert caught.value.hint


def test_the_fingerprint_names_what_makes_kv(copy: Path, tmp_path: Path):
    first = open_it(copy)
    same = open_it(edit(copy, _name_or_path="elsewhere", transformers_version="4.0.0"))
    assert same.fingerprint() == first.fingerprint()
    assert len({first.fingerprint(), first.fingerprint(1), open_it(copy, dtype="bfloat16").fingerprint()}) == 3  # fmt: skip  # noqa: E501
    assert open_it(edit(copy, sliding_window=64)).fingerprint() != first.fingerprint()
    other = write_foreign_model(tmp_path / "other", "mistral", seed=1)
    assert open_it(other).fingerprint() != first.fingerprint()
    assert first.identity["backend"] == "transformers"


def test_random_weights_are_named_by_their_seed(copy: Path):
    first, again, other = (open_it(copy, weights="random", seed=s) for s in (0, 0, 1))
    tokens = np.arange(9, dtype=np.int32)
    assert torch.equal(first.net.forward(tokens), again.net.forward(tokens))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    with pytest.raises(UsageError, match="Random"):
        wider(first)


def test_the_limit_is_what_the_model_says(folder: Folder, tmp_path: Path):
    assert open_it(folder("gpt2")).net.limit == 2048
    assert open_it(folder("bloom")).net.limit == 4096  # its tokenizer's, as it names none
    plain = write_foreign_model(tmp_path / "plain", "bloom")
    (plain / "tokenizer_config.json").write_text("{}")
    assert open_it(plain).net.limit == 8192


def test_the_published_type_is_computed_where_it_is_asked_for(copy: Path):
    assert open_it(copy, dtype="auto").dtype == "float32"
    assert open_it(edit(copy, dtype=None), dtype="auto").dtype == "float32"  # as stored
    assert open_it(copy, dtype="bfloat16").net.layout.dtype == "bfloat16"


def test_the_wider_copy_is_wider(load: Load):
    model = load("mistral")
    tokens = np.arange(1, 60, dtype=np.int32)
    truth = wider(model).forward(tokens, keep=5)
    assert truth.dtype == torch.float64
    assert 0 < (truth - model.net.forward(tokens, keep=5)).abs().max() < 1e-4


def test_a_cache_that_goes_on_differently_is_not_trusted(load: Load, monkeypatch):
    """The examination finds a cache that forgets, whatever its layers are called."""
    model = load("mistral")
    net = Net(model.net._module, 4096)
    right = net.caches.restore

    def forgetful(kv, *, whole):
        cache = right(kv, whole=whole)
        for layer in cache.layers:
            layer.values = torch.zeros_like(layer.values)
        return cache

    monkeypatch.setattr(net.caches, "restore", forgetful)
    examine(net, "m")
    assert net.ability is Ability.STEP and net.layout is None
    assert "goes on differently" in net.why


def test_a_cache_that_writes_into_a_shared_prefix_is_not_trusted(load: Load, monkeypatch):
    right = DynamicSlidingWindowLayer.update

    def in_place(self, keys, values, *rest):
        given = self.keys if self.is_initialized else keys.clone()
        said = right(self, keys, values, *rest)
        given.zero_()
        return said

    monkeypatch.setattr(DynamicSlidingWindowLayer, "update", in_place)
    net = Net(load("mistral").net._module, 4096)
    examine(net, "m")
    assert net.ability is not Ability.KEEP and "writes into" in net.why


def test_a_cache_that_raises_is_not_used(load: Load, monkeypatch):
    net = Net(load("mistral").net._module, 4096)

    def broken(**_: object):
        raise AttributeError("no such thing")

    monkeypatch.setattr(net.caches, "own", broken)
    monkeypatch.setattr(net.caches, "strange", lambda: "")
    examine(net, "m")
    assert net.ability is Ability.WHOLE and "AttributeError: no such thing" in net.why
