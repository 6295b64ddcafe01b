from __future__ import annotations

import math

import pytest
import torch

from preread.kernels.rope import (
    Rope,
    inverse_frequencies,
    moved,
    moved_slow,
    rope_angles,
    rotate,
    rotate_slow,
)

LLAMA3 = Rope(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192)


def test_default_and_linear_frequencies() -> None:
    expected = torch.tensor([1.0, 0.1, 0.01, 0.001])
    torch.testing.assert_close(inverse_frequencies(Rope(), 8), expected)
    linear = inverse_frequencies(Rope(kind="linear", factor=4.0), 8)
    torch.testing.assert_close(linear, expected / 4)


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    plain = inverse_frequencies(Rope(500_000.0), 128)
    scaled = inverse_frequencies(LLAMA3, 128)
    wave = 2 * math.pi / plain
    short, long = wave < 8192 / 4, wave > 8192
    assert short.any() and long.any() and (~short & ~long).any()
    assert torch.equal(scaled[short], plain[short])
    torch.testing.assert_close(scaled[long], plain[long] / 8)
    between = ~short & ~long
    assert ((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 8)).all()
    assert (scaled.diff() < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fast_rotation_is_the_definition(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(5, 9, 16, generator=generator).to(dtype)
    x = whole[:, 2:6]  # a view, as it comes from the fused projection
    kept = whole.clone()
    angles = rope_angles(
        torch.tensor([0, 1, 5, 99, 131_071]), inverse_frequencies(LLAMA3, 16), dtype
    )
    fast = rotate(x, *angles)
    assert torch.equal(fast, rotate_slow(x, *angles))
    assert fast.is_contiguous()
    assert torch.equal(whole, kept)
    assert torch.equal(fast[0], x[0])  # position 0 is not turned


def test_scores_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    frequencies = inverse_frequencies(Rope(), 32).double()

    def score(at: int, other: int) -> torch.Tensor:
        def turned(x: torch.Tensor, position: int) -> torch.Tensor:
            angles = position * frequencies[None, None]
            return rotate(x, angles.cos(), angles.sin())

        return (turned(q, at) * turned(k, other)).sum()

    torch.testing.assert_close(score(10, 3), score(1010, 1003))
    assert not torch.isclose(score(10, 3), score(10, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_moved_key_is_the_one_rotated_at_its_new_place(dtype: torch.dtype) -> None:
    """Also where the angles were rounded to the model's type: they are undone as they were done."""
    plain = torch.randn(6, 3, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    old, new = torch.tensor([0, 1, 7, 512, 4000, 9]), torch.tensor([700, 0, 7, 40_000, 3, 131_071])
    before, after = (rope_angles(x, inverse_frequencies(LLAMA3, 32), dtype) for x in (old, new))
    there, here = (rotate_slow(plain, cos.double(), sin.double()) for cos, sin in (before, after))
    torch.testing.assert_close(moved_slow(there, before, after), here, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(moved(there, before, after), here, atol=1e-12, rtol=1e-12)
    kept = there.to(dtype)
    want = moved_slow(kept, before, after)
    got = moved(kept, before, after)
    assert got.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want, atol=4e-6, rtol=eps)
    torch.testing.assert_close(moved(kept, before, before), kept, atol=4e-6, rtol=eps)
