"""From conversations to flat batches of token ids, with what each token sees and weighs.

Weights of tokens as targets are in percent (0: part of a document); branches are those of
branches.py. Attention never crosses conversations.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.branches import BLOCK, Layout, Lists, block_lists, positions
from training.chat_format import START, render
from training.documents import Conversation


class Sequence(NamedTuple):
    """One conversation: tokens, weights and branches, all (N,)."""

    tokens: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.uint8]
    branches: npt.NDArray[np.int32]


class Batch(NamedTuple):
    """A flat batch: `tokens` (T,), who sees whom, `places` (K,) that predict, `weights` (K,)."""

    tokens: npt.NDArray[np.int64]
    layout: Layout
    lists: Lists
    places: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


CHAINED = 0.12
"""Share of the conversations whose questions see all earlier ones, as in a session."""


def places(ids: npt.NDArray[np.uint16], marker: tuple[int, ...]) -> list[int]:
    """Where a run of tokens begins."""
    starts = np.flatnonzero(ids[: len(ids) - len(marker) + 1] == marker[0]).tolist()
    return [at for at in starts if tuple(ids[at : at + len(marker)].tolist()) == marker]


def weigh(ids: npt.NDArray[np.uint16], marker: tuple[int, ...], end: int) -> npt.NDArray[np.uint8]:
    """Percent weights: answers up to 100 (long answers less for each token), everything else 0."""
    weights = np.zeros(len(ids), np.uint8)
    ends = np.flatnonzero(ids == end)
    for start in places(ids, marker):
        begin = start + len(marker)
        if begin < len(ids):
            stop = int(ends[np.searchsorted(ends, begin)]) + 1
            length = stop - begin
            weights[begin:stop] = 100 if length <= 16 else max(12, 1600 // length)
    return weights


def branch(
    ids: npt.NDArray[np.uint16], marker: tuple[int, ...], skills: Iterable[str]
) -> npt.NDArray[np.int32]:
    """The branch of each token: every question opens one, except a follow-up."""
    out = np.zeros(len(ids), np.int32)
    opened = 0
    for start, skill in zip(places(ids, marker), skills, strict=True):
        opened += skill != "follow-up"
        out[start:] = opened
    return out


class Encoder:
    """Turns conversations into sequences."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.asked, self.marker = (
            tuple(tokenizer.encode(f"{START}{role}\n", add_special_tokens=False).ids)
            for role in ("user", "assistant")
        )
        end = tokenizer.token_to_id("<|im_end|>")
        assert end is not None
        self.end = end

    def encode(self, made: list[Conversation], rng: np.random.Generator) -> list[Sequence]:
        """One sequence for each conversation."""
        texts = [render(conversation.messages) for conversation in made]
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            self._sequence(np.array(encoding.ids, np.uint16), conversation, rng)
            for encoding, conversation in zip(encoded, made, strict=True)
        ]

    def _sequence(
        self, ids: npt.NDArray[np.uint16], made: Conversation, rng: np.random.Generator
    ) -> Sequence:
        weights = weigh(ids, self.marker, self.end)
        if not made.apart or rng.random() < CHAINED:
            return Sequence(ids, weights, np.zeros(len(ids), np.int32))
        return Sequence(ids, weights, branch(ids, self.asked, made.skills))


def pack(picked: list[Sequence], size: int, rng: np.random.Generator) -> Batch:
    """Lay sequences one after the other and choose which places predict: all answers, some of the
    documents. Padding sees one block of itself.
    """
    used = sum(len(row.tokens) for row in picked)
    rest = np.arange(size - used, dtype=np.int32)
    tokens = np.zeros(size, np.int64)
    tokens[:used] = np.concatenate([row.tokens for row in picked])
    target = np.full(size, -1, np.int16)
    target[: used - 1] = np.concatenate([row.weights for row in picked])[1:]
    target[np.cumsum([len(row.tokens) for row in picked]) - 1] = -1
    layout = Layout(
        np.repeat(
            np.arange(len(picked) + 1, dtype=np.int32),
            [*(len(row.tokens) for row in picked), len(rest)],
        ),
        np.concatenate([*(row.branches for row in picked), 1 + rest // BLOCK]),
        np.concatenate([*(positions(row.branches) for row in picked), rest.astype(np.int64)]),
    )
    room = size // 4
    answers = np.flatnonzero(target > 0)[:room]
    others = np.flatnonzero(target == 0)
    extra = rng.choice(others, room - len(answers), replace=len(others) < room)
    index = np.concatenate([answers, extra])
    weights = np.maximum(target[index], 5).astype(np.float32) / 100
    return Batch(tokens, layout, block_lists(layout), index, weights)
