"""Pitches and pointers of copies to a device, with a runtime of our own; on a device they are in
tests/gpu/test_layers_gpu.py."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from preread.engine.rows import TO_DEVICE, Rows


def copied(to, to_pitch, source, source_pitch, width, rows, kind, stream) -> int:
    """cudaMemcpy2DAsync of a host."""
    assert (kind, stream) == (TO_DEVICE, 7)
    assert width <= to_pitch and width <= source_pitch
    for n in range(rows):
        ctypes.memmove(to + n * to_pitch, source + n * source_pitch, width)
    return 0


@pytest.mark.parametrize("seed", range(30))
def test_rows_are_what_torch_copies(seed: int) -> None:
    draw = np.random.default_rng(seed)
    layers, heads, slots, dim = (int(n) for n in draw.integers(1, (5, 5, 40, 9)))
    dtype = [torch.bfloat16, torch.float32][seed % 2]
    values = torch.full((layers, 2, heads, slots, dim), 7, dtype=dtype)
    want = values.clone()
    i, g = int(draw.integers(layers)), int(draw.integers(heads))
    j, h = int(draw.integers(i, layers)) + 1, int(draw.integers(g, heads)) + 1
    a = int(draw.integers(slots))
    b = int(draw.integers(a, slots)) + 1
    skip = int(draw.integers(3))  # tokens of the box that are there already
    kv = torch.randn(j - i, 2, h - g, skip + b - a, dim).to(dtype)[:, :, :, skip:]
    part = slice(i, j), slice(g, h)
    assert Rows(values, copied, lambda: 7).fill(slice(a, b), kv, *part)
    want[part[0], :, part[1], a:b].copy_(kv)
    assert torch.equal(values, want)


def test_what_lies_otherwise_is_left_to_torch() -> None:
    values = torch.zeros(2, 2, 3, 8, 4)
    rows = Rows(values, copied, lambda: 7)
    every = slice(None)
    turned = torch.ones(2, 2, 4, 5, 3).permute(0, 1, 4, 3, 2)
    assert not rows.fill(slice(0, 5), turned, every, every)
    assert not rows.fill(slice(0, 5), torch.ones(2, 2, 3, 5, 4).double(), every, every)
    assert not values.any()


@pytest.mark.parametrize(
    "shape", [(2, 2, 3, 6, 4), (1, 2, 3, 5, 4), (3, 2, 3, 5, 4), (2, 2, 2, 5, 4)]
)
def test_what_is_of_another_size_writes_over_nothing(shape: tuple[int, ...]) -> None:
    """Torch says what is wrong."""
    values = torch.zeros(2, 2, 3, 8, 4)
    rows = Rows(values, copied, lambda: 7)
    assert not rows.fill(slice(1, 6), torch.ones(shape), slice(None), slice(None))
    assert not values.any()


def test_an_error_is_raised() -> None:
    rows = Rows(torch.zeros(1, 2, 1, 4, 2), lambda *given: 700, lambda: 7)
    with pytest.raises(RuntimeError, match="700"):
        rows.fill(slice(0, 4), torch.zeros(1, 2, 1, 4, 2), slice(None), slice(None))


def test_a_host_has_none() -> None:
    assert Rows.of(torch.zeros(1, 2, 1, 4, 2)) is None
