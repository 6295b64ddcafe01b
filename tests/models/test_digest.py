from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from preread.errors import BadCheckpoint
from preread.models import digest
from preread.models.config import read_config
from preread.models.digest import model_fingerprint_parts, weights_digest
from preread.testing.models import write_tiny_model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(digest, "_SETTLED_S", -1.0)
    return write_tiny_model(tmp_path / "model")


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(file: Path, mark: str) -> str:
        raise AssertionError(f"{file} was read again")

    monkeypatch.setattr(digest, "_file_digest", read)


def test_the_digest_is_of_the_content(model: Path, tmp_path: Path, home: Path) -> None:
    same = write_tiny_model(tmp_path / "same")
    other = write_tiny_model(tmp_path / "other", seed=1)
    assert weights_digest(model, home) == weights_digest(same, home)
    assert weights_digest(model, home) != weights_digest(other, home)


def test_it_is_remembered_and_not_by_name(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weights_digest(model, home)
    moved = model.rename(model.with_name("moved"))
    with monkeypatch.context() as patch:
        forbid_reading(patch)
        # renaming a folder leaves the stamps of its files alone
        assert weights_digest(moved, home) == first
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    times = os.stat(weights)
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # ctime still tells
    assert weights_digest(moved, home) != first


def test_a_file_written_just_now_is_not_remembered_yet(tmp_path: Path, home: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    weights_digest(model, home)
    assert not (home / "digests.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": {"a": [1]}}', "\0"])
def test_a_damaged_memory_is_only_forgotten(model: Path, home: Path, content: str) -> None:
    home.mkdir()
    (home / "digests.json").write_text(content)
    value = weights_digest(model, home)
    assert list(json.loads((home / "digests.json").read_text())["files"])
    assert weights_digest(model, home) == value


def test_a_home_that_is_a_file_costs_only_the_memory(
    model: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = weights_digest(model, home)
    bad = home / "digests.json"  # a file where a folder is needed
    assert weights_digest(model, bad) == good
    assert "not remembered" in caplog.text


def _remember_many(store: Path, who: int) -> None:
    for i in range(20):
        digest._remember(store, {f"{who}-{i}": "0" * 64})


def test_two_processes_lose_nothing(home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    store = home / "digests.json"
    workers = [context.Process(target=_remember_many, args=(store, who)) for who in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(json.loads(store.read_text())["files"]) == 40
    assert sorted(p.name for p in home.iterdir()) == ["digests.json", "digests.lock"]


def test_no_weights_no_digest(tmp_path: Path, home: Path) -> None:
    with pytest.raises(BadCheckpoint, match="safetensors"):
        weights_digest(tmp_path, home)


def test_parts_name_what_makes_kv_and_nothing_else(tmp_path: Path) -> None:
    def parts(**options: object) -> dict[str, str | int]:
        folder = write_tiny_model(tmp_path / "m", **options)  # type: ignore[arg-type]
        return model_fingerprint_parts(read_config(folder), "w", "float32")

    base = parts()
    assert all(isinstance(value, str | int) for value in base.values())
    for options in (
        {"rope_theta": 5e5},
        {"rms_norm_eps": 1e-5},
        {"heads": 2},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"attention_bias": True},
    ):
        assert parts(**options) != base
    assert parts(eos_token_id=[1, 2], max_position_embeddings=99) == base
    config = read_config(tmp_path / "m")
    assert model_fingerprint_parts(config, "w", "bfloat16") != base
    assert model_fingerprint_parts(config, "v", "float32") != base
    assert model_fingerprint_parts(config, "w", "float32", "int8") != base
    assert model_fingerprint_parts(config, "w", "float32", "full") == base
