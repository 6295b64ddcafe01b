"""Products in eight-bit floats: each road is the definition, and rows do not mix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from preread.engine.engine import Engine
from preread.engine.parity import parity
from preread.errors import ConfigError
from preread.kernels.fp8 import (
    LARGEST,
    Fp8Linear,
    fp8,
    fp8_linear_slow,
    quantise_slow,
    rounded_fp8,
)
from preread.kernels.linear import PlainLinear
from preread.models.load import PRECISIONS, choose_linear, rounded_linear
from preread.testing.models import load_decoder, write_tiny_model
from tests.engine.helpers import SMALL


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_element_is_within_its_step() -> None:
    x = randn(40, 96) * torch.logspace(-6, 6, 40)[:, None]
    x[7] = 0
    q, scale = quantise_slow(x)
    back = q.float() * scale[:, None]
    largest = x.abs().amax(1, keepdim=True)
    # Three bits of mantissa; below 2^-6 steps of 2^-9.
    assert ((back - x).abs() <= torch.maximum(x.abs() / 16, largest / LARGEST / 512)).all()
    assert scale[7] == 0 and not back[7].any()
    assert (q.float().abs().amax(1)[torch.arange(40) != 7] == LARGEST).all()


def test_what_is_not_finite_shows() -> None:
    x = randn(3, 32)
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    _, scale = quantise_slow(x)
    assert not scale[:2].isfinite().any() and scale[2].isfinite()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 130])
def test_the_product_is_the_definition(rows: int, bias: bool) -> None:
    weight, x = randn(80, 96, seed=1).bfloat16(), randn(rows, 96, seed=2).bfloat16()
    b = randn(80, seed=3).bfloat16() if bias else None
    want = fp8_linear_slow(x, *quantise_slow(weight), b)
    got = fp8(weight, b)(x)
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got, want, atol=5e-2, rtol=2e-2)
    torch.testing.assert_close(fp8(weight, b)(x[:1]), got[:1], atol=5e-2, rtol=2e-2)


def test_a_matrix_that_the_product_does_not_take_stays_whole() -> None:
    weight = randn(40, 96)
    assert isinstance(fp8(weight), PlainLinear) and isinstance(fp8(weight[:32]), Fp8Linear)
    x = randn(3, 96)
    assert torch.equal(rounded_fp8(weight)(x), PlainLinear(weight)(x))


def test_the_reference_rounds_the_weights_alone() -> None:
    weight, x = randn(32, 96), randn(3, 96).double()
    q, scale = quantise_slow(weight)
    want = x @ (q.double() * scale.double()[:, None]).T
    torch.testing.assert_close(rounded_fp8(weight.double())(x), want)


def test_law_1_holds(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", "llama", vocab=320)
    decoder = load_decoder(folder, "bfloat16", linear=fp8)
    # The reference rounds the very weights that were quantised, and nothing else.
    wide = load_decoder(folder, "float32", linear=lambda w, b: rounded_fp8(w.bfloat16().float(), b))
    report = parity(Engine(decoder, SMALL), wide, prompts=12)
    print(report)
    assert report.ok, report


def test_it_is_for_devices_that_have_it() -> None:
    assert set(PRECISIONS) == {"full", "int8", "w8a8", "fp8"}
    assert all(rounded_linear(name) for name in PRECISIONS)
    with pytest.raises(ConfigError, match="Ada"):
        choose_linear("fp8", torch.device("cpu"))
