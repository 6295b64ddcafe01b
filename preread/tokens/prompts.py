"""Prompts of a request batch -> tokens, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from preread.backend import LogLikelihood, Ragged, RequestBatch
from preread.errors import RequestError
from preread.models.many import encode_many
from preread.models.text import Text
from preread.models.tokenizer import At
from preread.tokens.ragged import beside, distinct, lengths, picked, stacked
from preread.types import Prefix

if TYPE_CHECKING:
    from preread.types import Int32Array, Int64Array

T = TypeVar("T")
# length of the prefix; of every row, how many tokens of it are not used, and its own tokens
_Found = tuple[int, list[int], list[list[int]]]


@dataclass(slots=True)
class Encoded:
    """own tokens, prefix tokens used and prefix length of each row of a block; tails: how many of
    the own ones are a given continuation. errors: row of the batch -> message."""

    own: Ragged
    base: Int32Array
    context: Int32Array
    tails: Int32Array
    errors: dict[int, str] = field(default_factory=dict)


class Prompts:
    """Lays out and encodes prompts for one model. Thread-safe."""

    def __init__(self, text: Text) -> None:
        self._text = text

    def encode(self, batch: RequestBatch, rows: Int64Array, prefix_of: Int32Array) -> Encoded:
        """Rows of a batch and the prefix of each (-1: none)."""
        none = np.zeros(len(rows), np.int32)
        if isinstance(batch.prompts, Ragged):
            read = Encoded(picked(batch.prompts, rows), none, none, none)
        else:
            texts = [batch.prompts[i] for i in rows.tolist()]
            read = Encoded(stacked([]), none.copy(), none.copy(), none)
            read.own = stacked(self._read(batch, texts, rows, prefix_of, read))
        if isinstance(batch.work, LogLikelihood):
            self._continue(batch.work, batch.raw, rows, read)
        return read

    def answers(self, texts: Sequence[str], raw: bool) -> list[list[int]]:
        """Tokens of each as the beginning of an answer, or as what goes on after a raw prompt."""
        if raw:
            return encode_many(self._text.tokenizer, [], texts, [], At.MIDDLE)
        return self._text.chat.answers(texts)

    def _continue(self, work: LogLikelihood, raw: bool, rows: Int64Array, read: Encoded) -> None:
        """Each prompt is followed by its given continuation."""
        if isinstance(work.continuations, Ragged):
            tails = picked(work.continuations, rows)
        else:
            texts = [work.continuations[i] for i in rows.tolist()]
            try:
                tails = stacked(self.answers(texts, raw))
            except RequestError:
                alone = partial(self._answer, raw=raw)
                tails = stacked(_one_by_one(alone, texts, rows, read.errors, []))
        read.tails = lengths(tails).astype(np.int32)
        for row in rows[lengths(read.own) == 0].tolist():
            read.errors.setdefault(row, "the prompt is empty. Give at least one token.")
        for row in rows[read.tails == 0].tolist():
            read.errors.setdefault(row, "the continuation is empty. Give some text.")
        read.own = beside(read.own, tails)

    def _read(
        self, batch: RequestBatch, texts: Sequence[str], rows: Int64Array, prefix_of: Int32Array,
        read: Encoded,
    ) -> list[list[int]]:  # fmt: skip
        """Own tokens of each; the rest is written to `read`."""
        own: list[list[int]] = [[]] * len(texts)
        for number in distinct(prefix_of):
            mine = np.flatnonzero(prefix_of == number)
            some = [texts[i] for i in mine.tolist()]
            try:
                length, drops, ids = self._on(batch, number, some)
            except RequestError:  # one of them is at fault, or all
                alone = partial(self._on_alone, batch, number)
                found = _one_by_one(alone, some, rows[mine], read.errors, (0, 0, list[int]()))
                length = max(n for n, _, _ in found)
                drops, ids = [drop for _, drop, _ in found], [row for _, _, row in found]
            read.context[mine] = length
            read.base[mine] = length - np.array(drops) if length else 0
            for i, row in zip(mine.tolist(), ids, strict=True):
                own[i] = row
        return own

    def _on(self, batch: RequestBatch, number: int, texts: Sequence[str]) -> _Found:
        """Texts on one prefix (-1: none)."""
        chat, tokenizer = self._text.chat, self._text.tokenizer
        if batch.raw:
            ids = encode_many(tokenizer, [], texts, [])
            return 0, [0] * len(ids), [[*tokenizer.bos_ids, *row] for row in ids]
        prefix = batch.prefixes[number] if number >= 0 else Prefix("")
        head = chat.prefix(prefix)
        if not batch.reuse:  # the slow twin
            whole = [chat.whole(prefix, text).tolist() for text in texts]
            return len(head) if number >= 0 else 0, [len(head)] * len(texts), whole
        suffixes = chat.suffixes(prefix, texts)
        drops, ids = [drop for drop, _ in suffixes], [own for _, own in suffixes]
        if number >= 0:
            return len(head), drops, ids
        kept = head.tolist()
        whole = [kept[: len(kept) - drop] + own for drop, own in suffixes]
        return 0, drops, whole

    def _on_alone(self, batch: RequestBatch, number: int, text: str) -> tuple[int, int, list[int]]:
        length, (drop,), (own,) = self._on(batch, number, [text])
        return length, drop, own

    def _answer(self, text: str, raw: bool) -> list[int]:
        return self.answers([text], raw)[0]


def _one_by_one(
    work: Callable[[str], T], texts: Sequence[str], rows: Int64Array, errors: dict[int, str],
    without: T,
) -> list[T]:  # fmt: skip
    """What is wrong with one is its own error."""
    found = []
    for row, text in zip(rows.tolist(), texts, strict=True):
        try:
            found.append(work(text))
        except RequestError as exc:
            errors.setdefault(row, str(exc))
            found.append(without)
    return found
