"""Token arrays and their weights."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from training.make_tokenizer import open_bank
from training.stream import PHASES, Maker, pack

READER = Path(__file__).parents[2] / "preread" / "assets" / "reader"
TEXTS = [
    "The Marlow drill (XK-4927) costs 1,250.50 euros.\n\n## Über uns",
    '{"entities":[{"name":"Ada","type":"person"}]}',
    " \n x  y\t",
]


def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(READER / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_is_lossless(text: str) -> None:
    made = tokenizer()
    assert made.decode(made.encode(text).ids) == text


def test_a_word_has_the_same_pieces_with_and_without_a_space() -> None:
    made = tokenizer()
    for word in ("Marlow", "quaimoust", "handbook", "Skobrig"):
        bare, spaced = made.encode(word).tokens, made.encode(f" {word}").tokens
        assert "".join(spaced) == "Ġ" + "".join(bare)
        assert spaced[-len(bare) + 1 :] == bare[1:] or len(bare) == 1


def test_only_answers_carry_full_weight() -> None:
    made = tokenizer()
    chunk = Maker(open_bank(), made, 5).chunk(PHASES[0], 4)
    assert len(chunk.tokens) == len(chunk.weights) == chunk.lengths.sum()
    assert 0.003 < (chunk.weights > 0).mean() < 0.4
    answer = made.decode(chunk.tokens[chunk.weights > 0].tolist(), skip_special_tokens=False)
    assert "<|im_start|>" not in answer and answer.endswith("<|im_end|>")


def test_batches_never_predict_across_sequences() -> None:
    rng = np.random.default_rng(0)
    picked = [(np.arange(1, n, dtype=np.uint16), np.full(n - 1, 100, np.uint8)) for n in (9, 5, 30)]
    batch = pack(picked, 64, 8, rng)
    assert batch.bounds.tolist()[:4] == [0, 8, 12, 41] and len(batch.bounds) == 9
    ends = {7, 11, 40}
    assert not ends & set(batch.places.tolist()) and batch.places.max() < 41
