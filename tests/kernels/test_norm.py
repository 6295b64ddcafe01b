from __future__ import annotations

import pytest
import torch

from preread.kernels.norm import rms_norm, rms_norm_slow

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (7, 5, 64), (0, 8), (3, 896)])
def test_the_stock_op_is_the_definition(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 3).to(dtype)
    weight = torch.randn(shape[-1], generator=generator).to(dtype)
    torch.testing.assert_close(
        rms_norm(x, weight, 1e-6), rms_norm_slow(x, weight, 1e-6), atol=0, rtol=1e-6
    )


def test_views_extremes_and_eps() -> None:
    x = torch.randn(4, 10, 32)[:, 2:5]
    weight = torch.rand(32)
    assert torch.allclose(rms_norm(x, weight, 1e-5), rms_norm_slow(x, weight, 1e-5))
    zero = torch.zeros(1, 32)
    assert torch.equal(rms_norm(zero, weight, 1e-5), zero)
    huge = torch.full((1, 32), 3e4, dtype=torch.float16)  # its square is beyond float16
    ones = torch.ones(32, dtype=torch.float16)
    assert torch.equal(rms_norm(huge, ones, 1e-5), torch.ones(1, 32, dtype=torch.float16))


def test_the_weight_comes_after_the_rounding() -> None:
    """In bf16 the two orders differ; the published models round first."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 256, generator=generator).bfloat16()
    weight = torch.rand(256, generator=generator).bfloat16()
    wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(rms_norm(x, weight, 1e-6), weight * wide.bfloat16())
    assert not torch.equal(rms_norm(x, weight, 1e-6), (weight.float() * wide).bfloat16())
