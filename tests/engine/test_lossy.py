from __future__ import annotations

import numpy as np
import pytest
import torch

from preread.engine.lossy import measure, through
from preread.errors import UsageError
from preread.models.decoder import PackedDecoder
from preread.store.codec import Fp8Codec, Int8Codec, RawCodec
from preread.store.keys import Geometry

TOKENS = np.random.default_rng(3).integers(0, 200, 90).astype(np.int32)


def geometry(of: PackedDecoder) -> Geometry:
    return Geometry(of.layers, of.kv_heads, of.head_dim, "float32", 32, 1 << 14)


def test_a_codec_that_loses_nothing_changes_nothing(decoder: PackedDecoder) -> None:
    loss = measure(decoder, geometry(decoder), RawCodec(), TOKENS, 70)
    agreement = loss.agreement
    assert (loss.keys, loss.values, loss.logits, loss.worst) == (0, 0, 0, 0)
    assert (loss.prefix, agreement.tokens, agreement.equal) == (70, 20, 20)
    assert agreement.divergence == 0


@pytest.mark.parametrize(("codec", "most"), [(Fp8Codec(), 0.04), (Int8Codec(), 0.01)])
def test_one_that_does_is_seen(
    decoder: PackedDecoder, codec: Fp8Codec | Int8Codec, most: float
) -> None:
    loss = measure(decoder, geometry(decoder), codec, TOKENS, 70)
    assert 0 < loss.keys < most and 0 < loss.values < most
    assert 0 < loss.logits <= loss.worst < 1 and loss.agreement.divergence > 0


def test_it_is_what_a_chunk_gives_back() -> None:
    """Box by box, the last span shorter: the same as encoding each piece by hand."""
    kv = torch.randn(3, 2, 2, 37, 8, generator=torch.Generator().manual_seed(1))
    cut = Geometry(3, 2, 8, "float32", 16, 3000)
    assert len(cut.cells) > 1
    back = through(Int8Codec(), cut, kv)
    for start, end in ((0, 16), (16, 32), (32, 37)):
        for i, j, g, h in cut.cells:
            piece = kv[i:j, :, g:h, start:end]
            shape = (j - i, 2, h - g, end - start, 8)
            payload = Int8Codec().encode(piece, shape, "float32")
            expected = Int8Codec().decode(payload, shape, "float32")
            assert torch.equal(back[i:j, :, g:h, start:end], expected)
    assert torch.equal(through(RawCodec(), cut, kv), kv)


@pytest.mark.parametrize("split", [0, 90])
def test_both_parts_are_needed(decoder: PackedDecoder, split: int) -> None:
    with pytest.raises(UsageError, match="no text"):
        measure(decoder, geometry(decoder), RawCodec(), TOKENS, split)
