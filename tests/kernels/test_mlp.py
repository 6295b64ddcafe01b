from __future__ import annotations

import pytest
import torch

from preread.kernels.mlp import swiglu, swiglu_slow


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_the_fast_form_is_the_definition(dtype: torch.dtype, tolerance: float) -> None:
    gate_up = (torch.randn(9, 64, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    kept = gate_up.clone()
    torch.testing.assert_close(
        swiglu(gate_up), swiglu_slow(gate_up), atol=tolerance, rtol=tolerance
    )
    assert torch.equal(gate_up, kept)  # the input is not written to
    assert swiglu(gate_up).shape == (9, 32)


def test_the_gate_is_the_first_half() -> None:
    gate_up = torch.tensor([[0.0, 100.0, 5.0, 7.0]])
    assert torch.equal(swiglu(gate_up), torch.tensor([[0.0, 700.0]]))
