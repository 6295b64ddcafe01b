"""Token arrays and their weights."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.training import shipped
from training.batches import Sequence, pack
from training.stream import PHASES, Maker

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
    for row in Maker(shipped.bank(), made, 5).sequences(PHASES[0], 4):
        assert len(row.tokens) == len(row.weights) == len(row.branches)
        assert 0.003 < (row.weights > 0).mean() < 0.6
        answer = made.decode(row.tokens[row.weights > 0].tolist(), skip_special_tokens=False)
        assert "<|im_start|>" not in answer and answer.endswith("<|im_end|>")


def test_a_batch_is_filled_and_nothing_is_shown_twice() -> None:
    maker = Maker(shipped.bank(), tokenizer(), 5)
    first, second = (maker.batch(PHASES[0], 16_384) for _ in range(2))
    for batch in (first, second):
        padding = batch.layout.sequence == batch.layout.sequence[-1]
        assert len(batch.tokens) == 16_384 and padding.mean() < 0.3
    assert not np.array_equal(first.tokens, second.tokens)


def rows(*lengths: int) -> list[Sequence]:
    return [
        Sequence(
            np.arange(1, n + 1, dtype=np.uint16),
            np.full(n, 100, np.uint8),
            np.zeros(n, np.int32),
        )
        for n in lengths
    ]


def test_batches_never_predict_across_sequences() -> None:
    batch = pack(rows(8, 4, 29), 128, np.random.default_rng(0))
    assert np.bincount(batch.layout.sequence).tolist() == [8, 4, 29, 87]
    ends = {7, 11, 40}
    assert not ends & set(batch.places.tolist()) and batch.places.max() < 41


def test_every_question_but_a_follow_up_opens_a_branch() -> None:
    made = tokenizer()
    found = 0
    for row in Maker(shipped.bank(), made, 8).sequences(PHASES[0], 20):
        if not row.branches.any():
            continue
        found += 1
        document = made.decode(row.tokens[row.branches == 0].tolist(), skip_special_tokens=False)
        assert document.endswith("<|im_end|>\n") and "<|im_start|>user" not in document
        text = made.decode(row.tokens[row.branches == 1].tolist(), skip_special_tokens=False)
        assert text.startswith("<|im_start|>user\n") and text.endswith("<|im_end|>\n")
    assert found > 5
