"""Every attention road against the float64 twin, for odd head counts, sizes and extreme inputs."""

import pytest
import torch

from preread.kernels.attention import (
    _plain,
    attend_at,
    attend_causal,
    attend_decode,
    attend_dense,
    attend_reference,
)

HEADS = [(14, 2), (6, 2), (4, 4), (8, 1)]
SIZES = [16, 40, 64, 128]
BOUND = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
DTYPES = list(BOUND)


def rand(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got, want, dtype) -> None:
    torch.testing.assert_close(got[0].double(), want[0], atol=BOUND[dtype], rtol=BOUND[dtype])
    torch.testing.assert_close(got[1].double(), want[1], atol=BOUND[dtype], rtol=BOUND[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("heads", "groups"), HEADS)
def test_dense_on_a_strided_view(heads, groups, size, dtype):
    arena = rand(2, groups, 300, size, dtype=dtype)
    k, v = arena[0, :, 50:187], arena[1, :, 50:187]
    q = rand(9, heads, size, dtype=dtype, seed=1)
    got = attend_dense(q, k, v, size**-0.5)
    close(got, attend_reference(q, k, v, size**-0.5, torch.ones(9, 137, dtype=torch.bool)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize("length", [1, 2, 33])
def test_causal(heads, groups, length, dtype):
    q = rand(3, length, heads, 32, dtype=dtype)
    k, v = (rand(3, length, groups, 32, dtype=dtype, seed=s) for s in (1, 2))
    out, lse = attend_causal(q, k, v, 0.2)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    for b in range(3):
        want = attend_reference(q[b], k[b].transpose(0, 1), v[b].transpose(0, 1), 0.2, mask)
        close((out[b], lse[b]), want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "groups"), HEADS)
def test_rows_at_any_places_of_a_sequence(heads, groups, dtype):
    arena = rand(2, groups, 300, 32, dtype=dtype)
    k, v = arena[0, :, 50:187], arena[1, :, 50:187]
    places = torch.tensor([0, 3, 4, 50, 136])
    q = rand(5, heads, 32, dtype=dtype, seed=1)
    seen = torch.arange(137) <= places[:, None]
    want = attend_reference(q, k, v, 0.2, seen)
    close(attend_at(q, k, v, places, 0.2), want, dtype)
    bias = torch.zeros(5, 137, dtype=dtype).masked_fill(~seen, -torch.inf)[None, None]
    out, lse = _plain(q.transpose(0, 1)[None], k[None], v[None], 0.2, False, bias)
    close((out[0].transpose(0, 1), lse[0].transpose(0, 1)), want, dtype)
    assert attend_at(q[:0], k, v, places[:0], 0.2)[0].shape == (0, heads, 32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tree_mask_replaces_the_causal_rule(dtype):
    q = rand(2, 7, 6, 16, dtype=dtype)
    k, v = (rand(2, 7, 2, 16, dtype=dtype, seed=s) for s in (1, 2))
    mask = (rand(2, 7, 7, dtype=torch.float32, seed=3) > 0) | torch.eye(7, dtype=torch.bool)
    out, lse = attend_causal(q, k, v, 0.25, mask)
    for b in range(2):
        want = attend_reference(q[b], k[b].transpose(0, 1), v[b].transpose(0, 1), 0.25, mask[b])
        close((out[b], lse[b]), want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "groups"), HEADS)
def test_decode_with_unequal_and_empty_rows(heads, groups, dtype):
    lengths = torch.tensor([5, 0, 48, 1])
    q = rand(4, heads, 64, dtype=dtype)
    k, v = (rand(4, groups, 48, 64, dtype=dtype, seed=s) for s in (1, 2))
    out, lse = attend_decode(q, k, v, lengths, 0.125)
    for b, n in enumerate(lengths.tolist()):
        mask = (torch.arange(48) < n)[None]
        close(
            (out[b : b + 1], lse[b : b + 1]),
            attend_reference(q[b : b + 1], k[b], v[b], 0.125, mask),
            dtype,
        )
    assert lse[1].eq(-torch.inf).all()
    assert out[1].eq(0).all()


def test_no_keys_and_no_rows():
    q = rand(3, 4, 16, dtype=torch.float32)
    none = torch.empty(2, 0, 16)
    out, lse = attend_dense(q, none, none, 1.0)
    assert out.eq(0).all() and lse.eq(-torch.inf).all()
    assert attend_dense(q[:0], torch.ones(2, 5, 16), torch.ones(2, 5, 16), 1.0)[0].shape == (
        0,
        4,
        16,
    )
    assert (
        attend_decode(
            q,
            none[None].expand(3, -1, -1, -1),
            none[None].expand(3, -1, -1, -1),
            torch.zeros(3),
            1.0,
        )[1]
        .eq(-torch.inf)
        .all()
    )
    assert attend_causal(q[None, :0], q[None, :0], q[None, :0], 1.0)[0].shape == (1, 0, 4, 16)


@pytest.mark.parametrize("scale", [1e3, 1e-6])
def test_extreme_logits(scale):
    q = rand(5, 4, 16, dtype=torch.float32)
    k, v = (rand(2, 90, 16, dtype=torch.float32, seed=s) for s in (1, 2))
    out, lse = attend_dense(q, k, v, scale)
    want, want_lse = attend_reference(q, k, v, scale, torch.ones(5, 90, dtype=torch.bool))
    torch.testing.assert_close(out.double(), want, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("budget", [1, 1 << 26])
def test_the_plain_road_in_blocks(causal, budget, monkeypatch):
    monkeypatch.setattr("preread.kernels.attention.PLAIN_SCORES", budget)
    q = rand(1, 6, 11, 16, dtype=torch.float32)
    k, v = (rand(1, 2, 11, 16, dtype=torch.float32, seed=s) for s in (1, 2))
    out, lse = _plain(q, k, v, 0.3, causal, None)
    mask = torch.ones(11, 11, dtype=torch.bool)
    want = attend_reference(q[0].transpose(0, 1), k[0], v[0], 0.3, mask.tril() if causal else mask)
    close((out[0].transpose(0, 1), lse[0].transpose(0, 1)), want, torch.float32)
