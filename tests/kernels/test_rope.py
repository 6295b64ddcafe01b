from __future__ import annotations

import math

import pytest
import torch

from preread.kernels.rope import Rope, inverse_frequencies, rope_angles, rotate, rotate_slow

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
