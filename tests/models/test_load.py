from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from preread.errors import BadCheckpoint, ConfigError, ModelNotFound, PrereadError, UnsupportedModel
from preread.models import load as loading
from preread.models.digest import weights_digest
from preread.models.load import (
    choose_device,
    choose_dtype,
    cpu_has_bfloat16,
    effective_context,
    load_model,
)
from preread.models.text import load_text
from preread.testing.models import forward, load_decoder, write_tiny_model
from preread.types import Prefix

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", layers=1, dtype="bfloat16", eos_token_id=256)


def test_everything_of_a_model(model: Path, home: Path) -> None:
    loaded = load_model(str(model), dtype="float32", home=home)
    assert loaded.decoder.dtype is torch.float32
    assert loaded.dtype == loaded.fingerprint_parts["dtype"] == "float32"
    assert loaded.folder == model
    assert loaded.stop_ids == {256, 258}  # config.json and tokenizer_config.json
    assert loaded.effective_context is None
    ids = loaded.chat.whole(Prefix("a"), "b").tolist()
    [ours], [theirs] = forward(loaded.decoder, [ids]), forward(load_decoder(model), [ids])
    assert torch.equal(ours, theirs)


def test_identity_is_weights_and_dtype_and_not_the_place(
    model: Path, tmp_path: Path, home: Path
) -> None:
    def parts(folder: Path, dtype: str = "float32") -> dict[str, str | int]:
        return load_model(str(folder), dtype=dtype, home=home).fingerprint_parts

    same = write_tiny_model(tmp_path / "same", layers=1, dtype="bfloat16")
    assert parts(model) == parts(same)
    assert parts(model) != parts(model, "bfloat16")
    other = write_tiny_model(tmp_path / "other", layers=1, dtype="bfloat16", seed=1)
    assert parts(model) != parts(other)


def test_random_weights_need_no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    one = load_model(str(model), weights="random", dtype="float32")
    two = load_model(str(model), weights="random", dtype="float32")
    other = load_model(str(model), weights="random", dtype="float32", seed=1)
    [a], [b] = forward(one.decoder, [[1, 2]]), forward(two.decoder, [[1, 2]])
    assert torch.equal(a, b)
    assert one.fingerprint_parts == two.fingerprint_parts != other.fingerprint_parts


@pytest.mark.parametrize("change", [{"vocab_size": 321}, {"tie_word_embeddings": True}])
def test_random_weights_of_another_shape_are_other_weights(
    model: Path, change: dict[str, Any]
) -> None:
    one = load_model(str(model), weights="random", dtype="float32")
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    two = load_model(str(model), weights="random", dtype="float32")
    assert one.fingerprint_parts != two.fingerprint_parts


def test_weights_replaced_between_digest_and_load_are_noticed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest_then_replace(folder: Path, home: Path | None) -> str:
        digest = weights_digest(folder, home)
        write_tiny_model(folder, layers=1, dtype="bfloat16", seed=1)
        return digest

    monkeypatch.setattr(loading, "weights_digest", digest_then_replace)
    with pytest.raises(BadCheckpoint, match="changed"):
        load_model(str(model), dtype="float32")


def test_auto_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for native in (True, False):
        monkeypatch.setattr(loading, "cpu_has_bfloat16", lambda native=native: native)
        assert choose_dtype("auto", "bfloat16", CPU) == ("bfloat16" if native else "float32")
        assert choose_dtype("auto", "float16", CPU) == "float32"
        assert choose_dtype("auto", "float32", CPU) == "float32"
        assert choose_dtype("float16", "bfloat16", CPU) == "float16"
        assert choose_dtype("auto", "float16", cuda) == "float16"


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("flags : fpu avx512_bf16 sse", True),
        ("flags : amx_bf16", True),
        ("Features : asimd bf16", True),
        ("flags : fpu avx512f avx512bw", False),
    ],
)
def test_what_the_cpu_can_do(tmp_path: Path, text: str, native: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_has_bfloat16(tmp_path / "cpuinfo") is native
    assert cpu_has_bfloat16(tmp_path / "nothing") is False


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"dtype": "int8"}, ConfigError, "int8"),
        ({"device": "abacus"}, ConfigError, "abacus"),
        ({"device": "meta"}, ConfigError, "meta"),
        ({"weights": "some"}, ConfigError, "some"),
    ],
)
def test_bad_options_are_named(
    model: Path, options: dict[str, str], kind: type[PrereadError], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        load_model(str(model), **options)  # type: ignore[arg-type]


def test_an_unsupported_model_is_refused_before_its_weights_are_looked_at(model: Path) -> None:
    (model / "model.safetensors").unlink()
    raw = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(raw | {"model_type": "mixtral"}))
    with pytest.raises(UnsupportedModel, match="mixtral"):
        load_model(str(model))
    with pytest.raises(ModelNotFound):
        load_model(str(model.parent / "nothing"))


def test_device_auto_is_one_that_exists() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_effective_context_is_the_folders_own_or_the_published_one(tmp_path: Path) -> None:
    assert effective_context("meta-llama/Llama-3.1-8B-Instruct", tmp_path, 131072) == 32768
    assert effective_context("mistralai/Mistral-7B-Instruct-v0.2", tmp_path, 32768) == 16384
    assert effective_context("Qwen/Qwen3-8B", tmp_path, 40960) == 40960
    assert effective_context("someone/unknown", tmp_path, 4096) is None
    (tmp_path / "preread.json").write_text('{"effective_context": 12000}')
    assert effective_context("someone/unknown", tmp_path, 16384) == 12000
    assert effective_context("Qwen/Qwen3-8B", tmp_path, 8192) == 8192


def test_counting_tokens_needs_no_torch(model: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from preread.models.folder import resolve\n"
        "from preread.models.text import load_text\n"
        "from preread.types import Prefix\n"
        "text = load_text(resolve(sys.argv[1], weights=False))\n"
        "print(len(text.chat.prefix(Prefix('doc'))), 'torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True
    )
    expected = len(load_text(model).chat.prefix(Prefix("doc")))
    assert out.stdout.split() == [str(expected), "False"]
