"""Whole answers at once, equal to one token after another."""

from __future__ import annotations

import numpy as np
import pytest

from preread.models.tokenizer import Tokenizer
from preread.testing.models import write_byte_tokenizer
from preread.tokens.ragged import stacked
from preread.tokens.texts import Texts


@pytest.fixture(scope="module", params=["bytes", "reader"])
def tokenizer(request, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "reader":
        from preread.models.folder import resolve

        return Tokenizer(resolve("reader", weights=False))
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return Tokenizer(folder)


@pytest.mark.parametrize("seed", range(4))
def test_the_text_is_that_of_the_stream(tokenizer, seed):
    make = np.random.default_rng(seed)
    rows = [
        make.integers(0, tokenizer.vocab_size + 2, n).tolist() for n in make.integers(0, 30, 40)
    ]
    assert Texts(tokenizer)(stacked(rows)) == [tokenizer.decode(row) for row in rows]


def test_text_of_real_words(tokenizer):
    words = ["grün und 日本語", " a leading space", "", "\n\n two\nlines "]
    rows = [tokenizer.encode_text(text) for text in words]
    assert Texts(tokenizer)(stacked(rows)) == [tokenizer.decode(row) for row in rows]
