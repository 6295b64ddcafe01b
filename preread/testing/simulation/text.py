"""A model that is none: words are tokens, the answer comes from a function."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from zlib import crc32

from preread.testing.replies import Reply, example
from preread.types import Message, Prefix

SYSTEM, USER, ASSISTANT, END = range(4)  # the template's own tokens; no text can produce them
WORD = re.compile(r"\s*\S+|\s+$")
LIKELY = -0.1  # log-probability of the token that is written
OTHERS = 1e-4  # about the probability of any other
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}

Answer = Callable[[Prefix, str], str | Reply]


class Written(NamedTuple):
    """An answer: its tokens as text, and why it ended ("stop" or "length")."""

    pieces: list[str]
    finish: str

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of the answer."""

    max_tokens: int = 256
    stop: Sequence[str] = ()
    schema: dict[str, Any] | None = None
    ignore_eos: bool = False


class Words:
    """The tokenizer and the chat template. Remembers every word it saw, so that ids can be read."""

    def __init__(self) -> None:
        self._pieces: dict[int, str] = {}
        self._encode = lru_cache(4096)(self._split)

    def encode(self, text: str) -> tuple[int, ...]:
        return self._encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.piece(token) for token in ids)

    def piece(self, token: int) -> str:
        return self._pieces.get(token, f" <{token}>")

    def layout(self, messages: Sequence[Message], answer: bool = True) -> list[int]:
        """A conversation as tokens; answer: with what starts the model's turn."""
        ids: list[int] = []
        for message in messages:
            ids += [ROLES[message.role], *self.encode(message.content), END]
        return [*ids, ASSISTANT] if answer else ids

    def parse(
        self, ids: Sequence[int], messages: Sequence[Message] = ()
    ) -> tuple[Prefix, str, list[int]]:
        """What a prompt says: its system text, the last question, and the answer begun so far.
        messages: what it was made from, where that is known."""
        if messages:
            system = messages[0].content if messages[0].role == "system" else ""
            return Prefix(system), messages[-1].content, []
        if ASSISTANT not in ids:
            return Prefix(""), self.decode(ids), []
        begun = len(ids) - list(reversed(ids)).index(ASSISTANT)
        turns = list(ids[: begun - 1])
        question = ""
        if USER in turns:
            start = len(turns) - turns[::-1].index(USER)
            question = self.decode(t for t in turns[start:] if t != END)
        system = self.decode(turns[1 : turns.index(END)]) if turns[:1] == [SYSTEM] else ""
        return Prefix(system), question, list(ids[begun:])

    def _split(self, text: str) -> tuple[int, ...]:
        ids = []
        for piece in WORD.findall(text):
            ids.append(token := (crc32(piece.encode()) & 0x3FFFFFFF) + len(ROLES) + 1)
            self._pieces[token] = piece
        return tuple(ids)


def write(words: Words, text: str, wish: Wish) -> Written:
    """An answer of at most so many tokens, before the first stop string."""
    if wish.schema is not None:
        text = json.dumps(example(wish.schema))
    if wish.ignore_eos:
        text += " more" * wish.max_tokens
    for stop in wish.stop:
        text = text.partition(stop)[0]
    words.encode(text)
    pieces = WORD.findall(text)
    cut = len(pieces) > wish.max_tokens
    return Written(pieces[: wish.max_tokens], "length" if cut else "stop")


def next_log(words: Words, answer: str, begun: Sequence[int], token: int) -> float:
    """log P(token) after what has been answered so far."""
    wanted = words.encode(answer)
    follows = list(wanted[: len(begun)]) == list(begun) and len(wanted) > len(begun)
    if follows and wanted[len(begun)] == token:
        return LIKELY
    return math.log(OTHERS * (0.5 + (token % 997) / 997))


def echo_log(before: int, token: int) -> float:
    """log P of a prompt's token after the one before it."""
    return -0.05 - ((before * 31 + token) % 997) / 250


def tops(words: Words, answer: str, begun: Sequence[int], n: int) -> list[tuple[str, float]]:
    """The n most likely next tokens: the answer's, then letters and digits."""
    wanted = words.encode(answer)
    first = [words.piece(wanted[len(begun)])] if len(wanted) > len(begun) else []
    rest = [p for p in (*"ABCDE", "yes", "no", *"0123456789") if p not in first]
    named = [(p, next_log(words, answer, begun, words.encode(p)[0])) for p in first + rest]
    return sorted(named, key=lambda pair: -pair[1])[:n]
