from __future__ import annotations

from pathlib import Path

import pytest
import torch

from preread.capacity.machine import (
    Machine,
    computed_dtype,
    cpu_name,
    known,
    named,
    rate_of,
    size_bytes,
    this_machine,
)
from preread.errors import ConfigError
from preread.models.load import choose_dtype

CPU = Machine("cpu", 1, {}, 0.0, "", on_gpu=False)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("80GB", 80 * 10**9), ("24 GiB", 24 << 30), ("1.5g", 1_500_000_000), ("4096", 4096)],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert size_bytes(text) == nbytes


@pytest.mark.parametrize(
    ("text", "rate"),
    [("989T", 989e12), ("3.35TB/s", 3.35e12), ("400 GFLOP/s", 4e11), ("3e12", 3e12)],
)
def test_rates(text: str, rate: float) -> None:
    assert rate_of(text, "--flops", "794T") == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "much", "0GB", "-1GB", "80GBit", "1.2.3G", "nan"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="80GB or 24GiB"):
        size_bytes(text)


def test_the_table_knows_what_was_measured() -> None:
    h100 = named("H100")
    assert h100.rate("bfloat16") == pytest.approx(794e12, rel=0.01)  # measured on one
    assert h100.rate("float16") == h100.rate("bfloat16") > h100.rate("float32") > 0
    assert all(m.memory > 0 and m.bandwidth > 1e11 for m in known().values())
    with pytest.raises(ConfigError, match="h100, h200"):
        named("h1000")


@pytest.mark.parametrize("published", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", ["auto", "float32", "bfloat16"])
def test_the_type_is_the_one_the_engine_would_take(wanted: str, published: str) -> None:
    assert computed_dtype(wanted, published, CPU) == choose_dtype(
        wanted, published, torch.device("cpu")
    )
    assert computed_dtype(wanted, published, named("l4")) == choose_dtype(
        wanted, published, torch.device("cuda")
    )


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="int3"):
        computed_dtype("int3", "float32", CPU)


def test_this_machine_has_a_name_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    here = this_machine("cpu")
    assert here.name == cpu_name() and "cores" in here.name
    assert here.memory > 1 << 28 and not here.on_gpu and not here.rate("float32")


def test_a_gpu_is_asked_for_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, bandwidth in (("NVIDIA L4", known()["l4"].bandwidth), ("NVIDIA New", 0.0)):
        tool.write_text(f'#!/bin/sh\necho "{name}, 23034"\n')
        tool.chmod(0o755)
        here = this_machine()
        assert (here.name, here.memory, here.bandwidth) == (name, 23034 << 20, bandwidth)
        assert not this_machine("cpu").on_gpu
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert not this_machine().on_gpu
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    tool.write_text('#!/bin/sh\necho "NVIDIA L4, 23034"\n')
    assert not this_machine().on_gpu
