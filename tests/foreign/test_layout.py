"""KV into chunks and back, bit for bit."""

from __future__ import annotations

import pytest
import torch

from preread.foreign.cache import KV
from preread.foreign.layout import KVLayout, layout_of

SHAPES = {
    "alike": [((2, 16), (2, 16))] * 4,
    "one head": [((1, 8), (1, 8))] * 3,
    "narrow values": [((3, 24), (3, 16))] * 2,  # 3 x 3 + 3 x 2 lanes of 8 a layer
    "an odd number of lanes": [((1, 24), (1, 16)), ((1, 8), (1, 8)), ((2, 8), (1, 16))],
    "layers of two sizes": [((2, 16), (2, 16)), ((1, 32), (1, 32))],
}


def made(name: str, tokens: int, dtype: torch.dtype = torch.float32) -> KV:
    make = torch.Generator().manual_seed(0)
    pairs = tuple(
        tuple(torch.randn(1, heads, tokens, size, generator=make).to(dtype)
              for heads, size in pair) for pair in SHAPES[name]
    )  # fmt: skip
    return KV(pairs, tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 9000])
@pytest.mark.parametrize("name", SHAPES)
def test_there_and_back(name: str, chunk_bytes: int):
    kv = made(name, 100)
    layout = layout_of(kv)
    assert layout is not None
    geometry = layout.geometry(32, chunk_bytes)
    staged, boxes = layout.stage(100), 0
    staged.fill_(float("nan"))
    for start in range(0, 100, 32):
        for box in geometry.boxes(start, min(start + 32, 100)):
            packed = layout.pack(kv, box)
            assert packed.shape == box.shape(geometry.head_dim)
            i, j, g, h = box[2:]
            staged[i:j, :, g:h, box.token_start : box.token_end] = packed
            boxes += 1
    assert boxes == 4 * len(geometry.cells)
    assert chunk_bytes > 9000 or name == "one head" or len(geometry.cells) > 1
    again = layout.unpack(staged)
    for pair, other in zip(kv.layers, again.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pair, other, strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_sizes(name: str):
    layout = layout_of(made(name, 5, torch.bfloat16))
    assert layout is not None and layout.uniform == (name in ("alike", "one head"))
    values = sum(heads * size for pair in SHAPES[name] for heads, size in pair)
    assert layout.bytes_per_token == 2 * values


def test_where_layers_are_alike_a_chunk_is_as_the_native_one():
    """[layers, 2 (K, V), heads, tokens, head size], see docs/format.md."""
    kv = made("alike", 10)
    layout = layout_of(kv)
    assert layout is not None
    geometry = layout.geometry(16, 1 << 20)
    assert (geometry.layers, geometry.kv_heads, geometry.head_dim) == (4, 2, 16)
    (box,) = geometry.boxes(0, 10)
    packed = layout.pack(kv, box)
    for place, (k, v) in enumerate(kv.layers):
        assert torch.equal(packed[place, 0], k[0]) and torch.equal(packed[place, 1], v[0])


def test_types_that_differ_have_no_layout():
    k, v = made("alike", 3).layers[0]
    assert layout_of(KV(((k, v.half()),), 3)) is None
    assert layout_of(KV(((k.double(), v.double()),), 3)) is None


def test_a_padded_lane_is_no_part_of_a_token():
    layout = KVLayout((((1, 24), (1, 16)), ((1, 8), (1, 8))), "float32")
    assert (layout.lanes, layout.width) == (7, 8)
    assert layout.geometry(16, 1 << 20).kv_heads == 4
    assert layout.bytes_per_token == 7 * 8 * 4
