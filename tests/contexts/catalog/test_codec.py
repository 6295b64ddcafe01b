"""Records as bytes."""

from __future__ import annotations

import json
import zlib

from hypothesis import given
from hypothesis import strategies as st

from preread.contexts.catalog.base import ContextRecord, Part, ShardRecord, SourceRecord
from preread.contexts.catalog.codec import compress, decompress, pack, unpack
from preread.testing.conformance_catalog import record

TEXT = st.text(max_size=20)
SOURCE = st.builds(
    SourceRecord, TEXT, TEXT, TEXT, TEXT, st.lists(st.integers(1, 10**6), max_size=5).map(tuple)
)
PART = st.builds(Part, st.integers(0, 9), st.integers(0, 99), st.integers(0, 99))
SHARD = st.builds(
    ShardRecord,
    TEXT,
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.integers(0, 10**9),
    st.integers(0, 10**12),
    st.lists(TEXT, max_size=3).map(tuple),
    st.lists(PART, max_size=3).map(tuple),
)
RECORD = st.builds(
    ContextRecord,
    *(TEXT, st.integers(1, 99), TEXT, TEXT, TEXT),
    sources=st.lists(SOURCE, max_size=3).map(tuple),
    shards=st.lists(SHARD, max_size=3).map(tuple),
    created_at=st.floats(0, 1e10),
    expires_at=st.none() | st.floats(0, 1e10),
    patterns=st.lists(TEXT, max_size=3).map(tuple),
    prefill_tok_s=st.floats(0, 1e6),
)


@given(RECORD)
def test_what_was_packed_comes_back(made: ContextRecord) -> None:
    data, texts = pack(made)
    assert unpack(data, texts.__getitem__) == made


def test_texts_are_kept_apart() -> None:
    data, texts = pack(record(text="unmistakable"))
    assert b"unmistakable" not in zlib.decompress(data)
    assert sorted(texts.values())[0] == "read [0] unmistakable"


def test_keys_of_a_later_release_are_left_out() -> None:
    data, texts = pack(record())
    body = json.loads(decompress(data))
    body["colour"] = body["sources"][0]["colour"] = body["shards"][0]["colour"] = "green"
    assert unpack(compress(json.dumps(body)), texts.__getitem__) == record()
