"""Small arrays of a step in one copy: each begins where 16 bytes do, or a program is compiled for
it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preread.engine.staging import needed, staged

HERE = torch.device("cpu")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("captured", [False, True])
def test_they_are_the_same_and_aligned(seed: int, captured: bool) -> None:
    draw = np.random.default_rng(seed)
    shapes = [tuple(draw.integers(0, 6, draw.integers(1, 3)).tolist()) for _ in range(8)]
    arrays = [draw.integers(-9, 9, shape).astype(np.int32) for shape in shapes]
    into = torch.full((needed(arrays),), 77, dtype=torch.int32) if captured else None
    there = staged(arrays, HERE, into)
    base = min(part.data_ptr() for part in there if len(part.flatten()))
    for part, array in zip(there, arrays, strict=True):
        assert tuple(part.shape) == array.shape and np.array_equal(part.numpy(), array)
        assert (part.data_ptr() - base) % 16 == 0 or not array.size
        assert part.is_contiguous()
    if into is not None:
        assert base == into.data_ptr()
