"""Weights in eight bits: each road is the definition, and only the weights are rounded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from preread.kernels import int8 as module
from preread.kernels.int8 import (
    PackedInt8,
    PlainInt8,
    int8,
    int8_linear_slow,
    int8_works,
    quantise_rows,
    rounded,
    split,
    split_slow,
)
from preread.kernels.linear import Linear

TYPES = (torch.float32, torch.bfloat16)
ROADS = (PackedInt8, PlainInt8)
Made = Callable[..., Linear]


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _skip_where_missing(road: Made) -> None:
    if road is PackedInt8 and not int8_works():
        pytest.skip("no integer product in this build")


def test_a_weight_is_at_most_half_a_step_away() -> None:
    weight = _randn(5000, 40) * torch.logspace(-3, 3, 5000)[:, None]  # more rows than one part
    weight[17] = 0
    q, scale = quantise_rows(weight)
    assert q.dtype is torch.int8 and int(q.min()) == -127 and int(q.max()) == 127
    assert bool(((q * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all())
    assert float(scale[17]) == 0 and not q[17].any()
    assert torch.equal(q.abs().amax(1)[:17], torch.full((17,), 127, dtype=torch.int8))


def test_a_weight_that_is_no_number_shows() -> None:
    weight = _randn(3, 8)
    weight[1, 2] = torch.nan
    _, scale = quantise_rows(weight)
    assert scale.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_two_bytes_hold_fourteen_bits_of_every_element(rows: int) -> None:
    x = _randn(rows, 300) * torch.logspace(-4, 4, rows)[:, None]
    parts, scale = split(x)
    assert parts.dtype is torch.uint8 and len(parts) == max(4, 2 * rows)
    assert int(parts[: 2 * rows].max()) <= 127  # else pairs of products may saturate
    high, low, exact_scale = split_slow(x)
    torch.testing.assert_close(scale[:, 0].double(), exact_scale, rtol=1e-6, atol=0)
    got = 128 * (parts[:rows].long() - 64) + parts[rows : 2 * rows].long() - 64
    assert int((got - (128 * high + low)).abs().max()) <= 1  # a tie may fall to the other side
    back = got * scale.double()
    largest = x.abs().amax(1, keepdim=True).double()
    assert bool(((back - x).abs() <= 1.01 * largest / 8127 / 2).all())


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 16, 129, 300])
def test_every_road_is_the_definition(road: Made, dtype: torch.dtype, rows: int) -> None:
    _skip_where_missing(road)
    weight, bias = _randn(150, 96).to(dtype), _randn(150).to(dtype)
    x = (_randn(rows, 96, seed=1) * torch.logspace(-2, 2, rows)[:, None]).to(dtype)
    q, scale = quantise_rows(weight)
    for given in (None, bias):
        got = road(weight, given)(x)
        assert got.shape == (rows, 150) and got.dtype is dtype
        exact = int8_linear_slow(x.double(), q, scale, given)
        unit = x.double().abs().amax(1, keepdim=True) if rows else 1.0
        own = torch.finfo(dtype).eps * exact.abs()  # of the result's type
        assert bool(((got.double() - exact).abs() <= 2e-3 * unit + own).all())


def test_long_sums_of_one_sign_do_not_saturate() -> None:
    if not int8_works():
        pytest.skip("no integer product in this build")
    weight, x = torch.ones(16, 16384), torch.full((3, 16384), 2.0)
    torch.testing.assert_close(PackedInt8(weight)(x), torch.full((3, 16), 32768.0))


@pytest.mark.parametrize("road", ROADS)
def test_a_row_does_not_depend_on_the_others(road: Made) -> None:
    _skip_where_missing(road)
    x, made = _randn(20, 96), road(_randn(64, 96, seed=1))
    crowd = x.clone()
    crowd[1:] *= 1000
    alone = made(x[:1])
    torch.testing.assert_close(made(crowd)[:1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("road", ROADS)
def test_rows_of_zeros_and_of_no_numbers(road: Made) -> None:
    _skip_where_missing(road)
    x = _randn(4, 96)
    x[1], x[2, 3], x[3, 5] = 0, torch.nan, torch.inf
    got = road(_randn(64, 96, seed=1).abs() + 0.1)(x)
    assert bool(got[0].isfinite().all()) and not got[1].any()
    assert bool(got[2].isnan().all()) and not got[3].isfinite().any()


def test_the_reference_is_the_definition() -> None:
    weight, x = _randn(30, 20).double(), _randn(4, 20, seed=1).double()
    expected = int8_linear_slow(x, *quantise_rows(weight))
    assert torch.allclose(rounded(weight)(x), expected, rtol=1e-12)


def test_a_product_that_saturates_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PackedInt8._product
    monkeypatch.setattr(PackedInt8, "_product", lambda self, x: right(self, x).clamp(max=30.0))
    assert not int8_works.__wrapped__()
    monkeypatch.setattr(module, "int8_works", lambda: False)
    assert isinstance(int8(torch.ones(4, 4)), PlainInt8)
