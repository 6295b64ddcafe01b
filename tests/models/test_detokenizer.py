from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Published
from tokenizers import decoders

from preread.models.detokenizer import Detokenizer, byte_alphabet
from preread.models.tokenizer import Tokenizer
from tests.models.made import write_tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
QUICK = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=["qwen3", "llama3", "llama2", "mistral3", "metaspace"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    if request.param != "metaspace":
        return write_tokenizer(path, request.param)
    write_tokenizer(path, "mistral3")
    published = Published.from_file(str(path / "tokenizer.json"))
    published.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
    )
    published.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def published(folder: Path) -> Published:
    return Published.from_file(str(folder / "tokenizer.json"))


@QUICK
@given(ids=st.lists(st.integers(0, 700), max_size=40), skip=st.booleans())
def test_the_stream_is_the_text(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    stream = Detokenizer(tokenizer, skip)
    pieces = [stream.push([token]) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, skip)


@QUICK
@given(text=TEXT)
def test_no_piece_is_ever_wrong(tokenizer: Tokenizer, published: Published, text: str) -> None:
    """Every emitted piece is the next part of the final text, and only whole characters are."""
    ids = published.encode(text, add_special_tokens=False).ids
    expected = published.decode(ids)
    stream, seen = Detokenizer(tokenizer), ""
    for token in ids:
        seen += stream.push([token])
        assert expected.startswith(seen)
    assert seen + stream.finish() == expected


def test_special_tokens_are_skipped_or_shown(tokenizer: Tokenizer) -> None:
    special = max(tokenizer.special_ids)
    text = tokenizer.token_text(special)
    assert tokenizer.decode([special]) == ""
    assert tokenizer.decode([special], skip_special=False) == text


def test_ids_beyond_the_vocabulary_are_silent(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(10_000_000) == b""
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""


def test_half_a_character_waits_and_then_shows(tokenizer: Tokenizer) -> None:
    first, *rest = "🗝".encode()
    by_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    stream = Detokenizer(tokenizer)
    assert stream.push([by_byte[bytes([first])]]) == ""
    assert stream.push([by_byte[bytes([byte])] for byte in rest]) == "🗝"
    assert stream.push([by_byte[bytes([first])]]) == ""
    assert stream.finish() == "\ufffd"


def test_the_alphabet_is_a_bijection() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert alphabet[ord("A")] == "A"
    assert alphabet[ord(" ")] == "Ġ"
