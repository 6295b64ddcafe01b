from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.config import StoreSection
from preread.errors import ConfigError, RequestError
from preread.store.keys import (
    CHUNK_TOKENS,
    OVERHEAD,
    Box,
    Epochs,
    Geometry,
    chain,
    chunk_key,
    fingerprint,
    key_tails,
    span_keys,
    tenant_digest,
)

PARTS = {"weights": "ab" * 32, "layers": 24, "rope_theta": 1e6, "qk_norm": True}
OF = fingerprint(PARTS)
OURS = tenant_digest("default")
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=40)


def digests(tokens: list[int], n: int = 8) -> list[tuple[int, int, bytes]]:
    return list(chain(OF, OURS, tokens, n))


# --- golden: a change here empties every user's cache; bump KV_MEANING only if that is meant ---


def test_golden_fingerprint() -> None:
    assert OF == "8412db505b9051fe662f46ca5854302632b211bddd3fd6ed469b246b98921f8d"


def test_golden_chain_and_keys() -> None:
    spans = digests([1, 2, 3, 70000, 5], 4)
    assert [(s.start, s.end) for s in spans] == [(0, 4), (4, 5)]
    assert (
        spans[0].digest.hex() == "3bea4f109005f9b424c11f9f0f68643c75ceaa45354212965ad23bb17e457dfe"
    )
    assert (
        spans[1].digest.hex() == "edbf3c2874ef99b29c3208e873f97eaba2ededa642066f346e31f086b6396276"
    )
    key = chunk_key(spans[0].digest, Box(0, 4, 0, 12, 0, 2), "raw")
    assert key.hex() == "9a86fc2269de783444eb1b9abdd4b7c2a8c0080ce3fec4925573323f3bc62bfb"
    assert (
        tenant_digest("default").hex()
        == "3817d41746f2d163318056429a59e7c095742aead11368577269ca08d3a4a6b8"
    )


def test_golden_epochs_and_shared_namespaces() -> None:
    """Epoch 0 gives the bytes from before there were epochs: nobody's cache is emptied."""
    (plain,) = chain(OF, OURS, [1, 2, 3, 70000], 4, Epochs(0, 0))
    assert plain == digests([1, 2, 3, 70000], 4)[0]
    (bumped,) = chain(OF, OURS, [1, 2, 3, 70000], 4, Epochs(1, 2))
    assert bumped.digest.hex() == "f9cb5ff484dc74c9f3d61ac936566c7db6eff96f24fffa14f5b52a05a7b2e772"
    shared = tenant_digest("default", shared=True).hex()
    assert shared == "ff8fa2624e3794e6d31b0681273813a7dec6062337c435a95f85dfff1f0eeeac"


# --- fingerprint ---


def test_fingerprint_ignores_order() -> None:
    assert fingerprint(dict(reversed(PARTS.items()))) == OF


@pytest.mark.parametrize(
    "other",
    [
        {**PARTS, "layers": 25},
        {**PARTS, "layers": "24"},
        {**PARTS, "layers": 24.0},
        {**PARTS, "qk_norm": 1},
        {**PARTS, "rope_theta": 1e6 + 1e-9},
        {**PARTS, "adapter": ""},
        {k: v for k, v in PARTS.items() if k != "qk_norm"},
        {"weightsl": "ab" * 32, "ayers": 24, "rope_theta": 1e6, "qk_norm": True},
    ],
)
def test_fingerprint_tells_apart(other: dict[str, str | int | float | bool]) -> None:
    assert fingerprint(other) != OF


@given(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=4), st.data())
def test_no_two_mappings_share_an_encoding(parts: dict[str, str], data: st.DataObject) -> None:
    other = data.draw(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=4))
    assert (fingerprint(parts) == fingerprint(other)) == (parts == other)


# --- chain ---


@given(TOKENS, st.data())
@settings(max_examples=50)
def test_one_changed_token_changes_its_span_and_all_later_ones(
    tokens: list[int], data: st.DataObject
) -> None:
    if not tokens:
        return
    at = data.draw(st.integers(0, len(tokens) - 1))
    changed = [t ^ (i == at) for i, t in enumerate(tokens)]
    before, after = digests(tokens), digests(changed)
    assert [a == b for a, b in zip(before, after, strict=True)] == [s.end <= at for s in before]


@given(TOKENS, TOKENS, TOKENS)
@settings(max_examples=50)
def test_texts_share_leading_spans_exactly_as_far_as_whole_chunks(
    common: list[int], left: list[int], right: list[int]
) -> None:
    one, two = [*common, 7, *left], [*common, 8, *right]
    shared = set(digests(one)) & set(digests(two))
    assert shared == set(digests(common[: len(common) // 8 * 8]))


def test_a_partial_span_is_not_the_full_one() -> None:
    short, full = digests([1] * 12), digests([1] * 16)
    assert short[0] == full[0] and short[1].digest != full[1].digest


def test_tenants_fingerprints_and_cuts_are_kept_apart() -> None:
    tokens = list(range(16))
    chains = [
        chain(OF, OURS, tokens, 8),
        chain(OF, tenant_digest("other"), tokens, 8),
        chain(OF, tenant_digest("default", shared=True), tokens, 8),
        chain(OF, OURS, tokens, 8, Epochs(1, 0)),
        chain(OF, OURS, tokens, 8, Epochs(0, 1)),
        chain(OF, OURS, tokens, 8, Epochs(2**63, 2**64 - 1)),
        chain(fingerprint({}), OURS, tokens, 8),
        chain(OF, OURS, tokens, 4),
    ]
    found = [span.digest for spans in chains for span in spans]
    assert len(set(found)) == len(found) == 2 * 7 + 4


@pytest.mark.parametrize("kind", [list, tuple, np.int32, np.int64, np.uint16])
def test_tokens_of_any_integer_kind_are_the_same(kind: type) -> None:
    ids = [1, 2, 300]
    given_as = kind(ids) if kind in (list, tuple) else np.array(ids, dtype=kind)
    assert list(chain(OF, OURS, given_as, 2)) == list(chain(OF, OURS, ids, 2))


@pytest.mark.parametrize("bad", [[-1], [2**31], [2**63], [2**80], [1.0], ["1"], [None]])
def test_what_int32_cannot_hold_is_refused_not_wrapped(bad: list[object]) -> None:
    with pytest.raises(RequestError, match="Token ids"):
        list(chain(OF, OURS, bad, 2))  # type: ignore[arg-type]


def test_no_tokens_no_spans() -> None:
    assert digests([]) == []


# --- keys and boxes ---


def test_every_coordinate_counts() -> None:
    digest = bytes(32)
    box = Box(0, 8, 0, 2, 0, 2)
    keys = {
        chunk_key(digest, box, "raw"),
        chunk_key(digest, box, "fp8"),
        chunk_key(b"1" * 32, box, "raw"),
    }
    for field in Box._fields:
        keys.add(chunk_key(digest, box._replace(**{field: 99}), "raw"))
    assert len(keys) == 3 + 6
    assert all(len(key) == 32 for key in keys)


def test_a_small_span_is_one_box() -> None:
    geometry = Geometry(8, 2, 64, "float16")
    assert geometry.boxes(256, 300) == [Box(256, 300, 0, 8, 0, 2)]
    assert geometry.bytes_per_token == 8 * 2 * 2 * 64 * 2
    assert geometry.boxes(0, 256)[0].shape(64) == (8, 2, 2, 256, 64)


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([4, 64]), st.integers(600, 40000))
def test_boxes_tile_the_span_and_fit(layers: int, heads: int, dim: int, limit: int) -> None:
    try:
        geometry = Geometry(layers, heads, dim, "bfloat16", chunk_tokens=8, chunk_bytes=limit)
    except ConfigError:
        assert limit < OVERHEAD + 2 * 8 * dim * 2
        return
    cells = np.zeros((layers, heads), dtype=int)
    for box in geometry.boxes(0, 8):
        assert np.prod(box.shape(dim)) * 2 + OVERHEAD <= limit
        cells[box.layer_start : box.layer_end, box.head_start : box.head_end] += 1
    assert (cells == 1).all()
    sizes = [np.prod(box.shape(1)[:3]) for box in geometry.boxes(0, 8)]
    one_layer = OVERHEAD + heads * 2 * 8 * dim * 2
    if one_layer <= limit:  # whole layers: as few as can be, as equal as can be
        assert all(box.head_end - box.head_start == heads for box in geometry.boxes(0, 8))
        per_box = (limit - OVERHEAD) // (one_layer - OVERHEAD)
        assert len(sizes) == -(-layers // per_box)
        assert max(sizes) - min(sizes) <= 2 * heads


@pytest.mark.parametrize(
    "shape", [(16, 8, 64), (28, 4, 128), (32, 8, 128), (80, 8, 128), (26, 4, 256)], ids=str
)
def test_the_default_chunk_fills_its_size_class(shape: tuple[int, int, int]) -> None:
    """Models whose KV of 256 tokens would fill it to the last byte, header and checksum apart."""
    geometry = Geometry(*shape, "bfloat16")
    boxes = geometry.boxes(0, geometry.chunk_tokens)
    largest = max(int(np.prod(box.shape(shape[2]))) * 2 for box in boxes) + OVERHEAD
    assert 0.9 * 2 * 1024 * 1024 < largest <= 2 * 1024 * 1024 - 64
    assert CHUNK_TOKENS == StoreSection().chunk_tokens == geometry.chunk_tokens


def test_a_chunk_too_small_for_one_head_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="chunk_bytes"):
        Geometry(1, 1, 128, "float32", chunk_bytes=1000)
    with pytest.raises(ConfigError, match="chunk_tokens"):
        Geometry(1, 1, 128, "float32", chunk_tokens=0)


@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_keys_of_a_span_are_those_of_its_boxes(codec: str) -> None:
    geometry = Geometry(6, 4, 64, "bfloat16", chunk_tokens=16, chunk_bytes=20_000)
    assert len(geometry.cells) > 2
    for span in chain(OF, OURS, range(40), 16):
        slow = [chunk_key(span.digest, box, codec) for box in geometry.boxes(span.start, span.end)]
        assert span_keys([span], key_tails(geometry.cells, codec)) == [tuple(slow)]
