"""Merging parts equals attending to everything at once."""

from itertools import pairwise

import pytest
import torch

from preread.kernels.attention import attend_dense, attend_reference
from preread.kernels.merge import fold, merge_reference


def folded(parts):
    out = torch.zeros_like(parts[0][0], dtype=torch.float32)
    lse = torch.full(parts[0][1].shape, -torch.inf)
    for part, part_lse in parts:
        fold(out, lse, part, part_lse)
    return out, lse


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("cuts", [(0, 60), (0, 1, 60), (0, 0, 17, 17, 44, 60)])
def test_any_split_of_the_keys_gives_the_whole(cuts, dtype, bound):
    torch.manual_seed(0)
    q = torch.randn(5, 6, 32).to(dtype)
    k, v = torch.randn(2, 2, 60, 32).to(dtype)
    parts = [attend_dense(q, k[:, a:b], v[:, a:b], 0.2) for a, b in pairwise(cuts)]
    want = attend_reference(q, k, v, 0.2, torch.ones(5, 60, dtype=torch.bool))
    for got in (folded(parts), merge_reference(parts)):
        torch.testing.assert_close(got[0].double(), want[0], atol=bound, rtol=bound)
        torch.testing.assert_close(got[1].double(), want[1], atol=bound, rtol=bound)


def test_empty_and_far_apart_parts():
    lses = torch.tensor([[-torch.inf, 300.0, -torch.inf, -2.0], [-torch.inf, -300.0, 1.0, -2.0]])
    outs = torch.tensor([[0.0, 1.0, 0.0, 4.0], [0.0, 9.0, 5.0, 6.0]])[..., None]
    parts = list(zip(outs, lses, strict=True))
    out, lse = folded(parts)
    assert out[:, 0].tolist() == [0.0, 1.0, 5.0, 5.0]
    assert lse[0] == -torch.inf
    want, want_lse = merge_reference(parts)
    torch.testing.assert_close(out.double(), want)
    torch.testing.assert_close(lse.double(), want_lse)
