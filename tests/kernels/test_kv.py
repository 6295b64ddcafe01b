"""Keys and values in eight bits: the rounding is the definition, and happens once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.kernels.kv import FORMATS, LEAST, PRECISIONS, quantise, restored, rounded, rounded_slow

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def example(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows of every size: outliers, zeros, largest elements at and around the edge of a scale."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 2, 16, generator=make, dtype=torch.float64)
    x[0] = 0
    x[1] *= 1e-9
    x[2] *= 300
    x[3, :, 5] *= 100
    x[4:12] *= torch.exp2(torch.randn(8, 1, 16, generator=make) * 4)
    for row, edge in enumerate((127, 448, 63.5, 224, 127.25, 450, 126.9, 223)):
        x[12 + row] = x[12 + row].clamp(-1, 1)
        x[12 + row, :, 0] = edge * 2.0 ** (row - 4)
    return x.to(dtype)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_is_the_definition(dtype: torch.dtype, precision: str) -> None:
    x = example(dtype)
    assert torch.equal(rounded(x, precision), rounded_slow(x, precision))


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    seed=st.integers(0, 10**6), exponent=st.integers(-14, 12), spread=st.floats(0, 6)
)  # the range of float16
@settings(max_examples=40, deadline=None)
def test_what_was_rounded_stays_as_it_is(
    dtype: torch.dtype, precision: str, seed: int, exponent: int, spread: float
) -> None:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 33, generator=make) * torch.exp2(torch.randn(5, 33, generator=make) * spread)
    once = rounded((x * 2.0**exponent).clamp(-6e4, 6e4).to(dtype), precision)
    assert torch.equal(rounded(once, precision), once)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_error_of_an_element_is_bounded(dtype: torch.dtype, precision: str) -> None:
    x = example(dtype, seed=1)
    codes, scale = quantise(x, precision)
    away = (restored(codes, scale, precision, dtype).double() - x.double()).abs()
    step = scale.double()[..., None]
    if precision == "fp8":  # half a unit of a mantissa of three bits, or of the smallest steps
        step = torch.maximum(x.double().abs() / 8, step * 2.0**-9)
    assert (away <= step / 2).all()
    top = x.abs().amax(-1)
    assert ((scale == LEAST) | (top > scale * FORMATS[precision].largest / 2)).all()


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_value_that_is_no_number_shows(precision: str, bad: float) -> None:
    x = example(torch.bfloat16)
    x[7, 1, 3] = bad
    got = rounded(x, precision)
    assert got[7, 1].isnan().all()
    assert got[torch.arange(40) != 7].isfinite().all() and got[7, 0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_code_of_eight_bit_floats_is_the_cast(dtype: torch.dtype) -> None:
    codes = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8)
    want = codes.view(torch.float8_e4m3fn).to(dtype)
    got = restored(codes[None], torch.ones(1), "fp8", dtype)[0]
    fine = ~want.isnan()
    assert fine.sum() == 254 and torch.equal(got[fine], want[fine])


def test_full_precision_is_nothing_at_all() -> None:
    x = example(torch.float32)
    assert PRECISIONS == ("full", "int8", "fp8") and rounded(x, "full") is x
