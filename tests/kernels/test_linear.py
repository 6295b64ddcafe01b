"""The packed product is the stock one, for every number of rows that takes another road."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from preread.kernels import linear
from preread.kernels.linear import PackedLinear, PlainLinear, pack, packing_works

DTYPES = (torch.float32, torch.bfloat16)


def _drawn(rows: int, dtype: torch.dtype, *shape: int) -> tuple[torch.Tensor, ...]:
    make = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, shape[1], generator=make), torch.randn(*shape, generator=make)
    return x.to(dtype), weight.to(dtype), torch.randn(shape[0], generator=make).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 7, 33, 300])
def test_the_packed_product_is_nearly_as_exact_as_the_plain_one(
    rows: int, dtype: torch.dtype
) -> None:
    if not packing_works(dtype):
        pytest.skip(f"no packed product in {dtype} on this processor")
    x, weight, bias = _drawn(rows, dtype, 200, 130)
    for given in (None, bias):
        got, plain = PackedLinear(weight, given)(x), PlainLinear(weight, given)(x)
        assert got.shape == plain.shape == (rows, 200) and got.dtype is dtype
        exact = F.linear(x.double(), weight.double(), None if given is None else given.double())
        if rows:
            limit = 2 * float((plain.double() - exact).abs().max()) + 2e-5
            assert float((got.double() - exact).abs().max()) <= limit


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_may_be_views_and_stay_as_they_are(dtype: torch.dtype) -> None:
    x, weight, bias = _drawn(9, dtype, 64, 48)
    wide = torch.cat((x, x), dim=1)
    kept = wide.clone()
    made = pack(weight, bias)
    assert torch.equal(made(wide[:, :48]), made(x)) and torch.equal(wide, kept)


def test_a_result_may_be_written_to() -> None:
    x, weight, _ = _drawn(1, torch.float32, 64, 48)
    made = pack(weight)
    first = made(x)
    expected = first.clone()
    first.zero_()
    assert torch.equal(made(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_take_the_stock_product(dtype: torch.dtype) -> None:
    _, weight, _ = _drawn(1, dtype, 8, 8)
    assert isinstance(pack(weight), PlainLinear)


def test_a_packed_product_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PackedLinear.__call__
    monkeypatch.setattr(PackedLinear, "__call__", lambda self, x: right(self, x) + 1)
    assert not packing_works.__wrapped__(torch.float32)
    monkeypatch.setattr(linear, "packing_works", lambda dtype: False)
    assert isinstance(pack(torch.ones(4, 4)), PlainLinear)


def test_a_build_without_the_packed_product_takes_the_stock_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(self: PackedLinear, *_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute")

    monkeypatch.setattr(PackedLinear, "__init__", missing)
    assert not packing_works.__wrapped__(torch.float32)
