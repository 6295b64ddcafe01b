"""Weights and activations in eight bits: each road is the definition, and rows do not mix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from preread.kernels import w8a8 as module
from preread.kernels.int8 import PackedInt8, int8, int8_works, quantise_rows
from preread.kernels.linear import Linear, PlainLinear, sensitive_form
from preread.kernels.w8a8 import (
    MIXED,
    PackedW8A8,
    PlainW8A8,
    quantise,
    quantise_slow,
    w8a8,
    w8a8_linear_slow,
    w8a8_works,
)

TYPES = (torch.float32, torch.bfloat16)
ROADS = (PackedW8A8, PlainW8A8)
Made = Callable[..., Linear]


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _skip_where_missing(road: Made) -> None:
    if road is PackedW8A8 and not w8a8_works():
        pytest.skip("no integer product of whole bytes in this build or processor")


@pytest.mark.parametrize("dtype", [*TYPES, torch.float64])
@pytest.mark.parametrize("rows", [1, 3, 5])
def test_one_byte_is_at_most_half_a_step_away(rows: int, dtype: torch.dtype) -> None:
    x = (_randn(rows, 300) * torch.logspace(-4, 4, rows)[:, None]).to(dtype)
    codes, scale = quantise(x)
    assert codes.dtype is torch.uint8 and len(codes) == max(4, rows)
    steps, exact_scale = quantise_slow(x)
    assert steps.abs().amax(1).tolist() == [127] * rows
    torch.testing.assert_close(scale[:, 0].double(), exact_scale, rtol=1e-6, atol=0)
    got = codes[:rows].long() - 128
    assert int((got - steps).abs().max()) <= 1  # a tie may fall to the other side
    assert float((got == steps).double().mean()) > 0.99
    back = got * scale.double()
    assert bool(((back - x.double()).abs() <= 0.5001 * scale.double()).all())


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 16, 129, 300])
def test_every_road_is_the_definition(road: Made, dtype: torch.dtype, rows: int) -> None:
    _skip_where_missing(road)
    weight, bias = _randn(150, 96).to(dtype), _randn(150).to(dtype)
    x = (_randn(rows, 96, seed=1) * torch.logspace(-2, 2, rows)[:, None]).to(dtype)
    q, scale = quantise_rows(weight)
    codes, step = quantise(x.float())
    other = (codes[:rows].long() - 128 != quantise_slow(x)[0]).sum(1, keepdim=True)  # ties
    tied = other * step.double() * weight.double().abs().max()
    for given in (None, bias):
        got = road(weight, given)(x)
        assert got.shape == (rows, 150) and got.dtype is dtype
        exact = w8a8_linear_slow(x, q, scale, given)
        own = torch.finfo(dtype).eps * exact.abs()  # of the result's type
        unit = x.double().abs().amax(1, keepdim=True) if rows else 1.0
        assert bool(((got.double() - exact).abs() <= 1e-5 * unit + own + tied).all())
    assert int(other.sum()) <= x.numel() // 100


def test_the_loss_is_that_of_one_byte() -> None:
    """A product of rounded rows, not of something else: as far off as half a step allows."""
    weight, x = _randn(150, 512), _randn(40, 512, seed=1)
    exact = x.double() @ weight.double().T
    off = (w8a8(weight)(x).double() - exact).square().mean().sqrt()
    fine = (int8(weight)(x).double() - exact).square().mean().sqrt()
    steps = (x.abs().amax(1) / 127).square().mean().sqrt() / 12**0.5 * 512**0.5
    assert fine < off and float(off) == pytest.approx(float(torch.hypot(fine, steps)), rel=0.1)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_is_the_same_to_the_last_bit_in_any_crowd(road: Made, dtype: torch.dtype) -> None:
    _skip_where_missing(road)
    x = _randn(300, 1024).to(dtype)
    made = road(_randn(64, 1024, seed=1).to(dtype))
    crowd = x.clone()
    crowd[1:] *= 1000
    crowd[2] = torch.nan
    many = made(x)
    if road is PackedW8A8:  # sums of integers; those of floats may add up in another order
        assert torch.equal(made(crowd)[:1], many[:1])
        for rows in (1, 2, 5, 130):
            assert torch.equal(made(x[:rows]), many[:rows])
    torch.testing.assert_close(made(crowd)[:1], many[:1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("road", ROADS)
def test_rows_of_zeros_and_of_no_numbers(road: Made) -> None:
    _skip_where_missing(road)
    x = _randn(4, 96)
    x[1], x[2, 3], x[3, 5] = 0, torch.nan, torch.inf
    got = road(_randn(64, 96, seed=1).abs() + 0.1)(x)
    assert bool(got[0].isfinite().all()) and not got[1].any()
    assert bool(got[2].isnan().all()) and not got[3].isfinite().any()


def test_long_sums_of_one_sign_do_not_saturate() -> None:
    _skip_where_missing(PackedW8A8)
    weight, x = torch.ones(16, 16384), torch.full((3, 16384), 2.0)
    torch.testing.assert_close(PackedW8A8(weight)(x), torch.full((3, 16), 32768.0))


def test_a_product_that_saturates_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PackedW8A8._product
    monkeypatch.setattr(PackedW8A8, "_product", lambda self, x: right(self, x).clamp(max=60.0))
    assert not w8a8_works.__wrapped__()
    monkeypatch.setattr(module, "w8a8_works", lambda: False)
    assert isinstance(w8a8(torch.ones(4, 4)), PlainW8A8)


def test_what_loses_most_keeps_two_bytes() -> None:
    assert sensitive_form(PlainLinear) is PlainLinear
    made = sensitive_form(MIXED)(torch.ones(4, 4), None)
    assert sensitive_form(MIXED) is int8 and (not int8_works() or isinstance(made, PackedInt8))
    assert type(MIXED(torch.ones(4, 4), None)) is type(w8a8(torch.ones(4, 4)))
