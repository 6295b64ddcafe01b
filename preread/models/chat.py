"""A conversation -> tokens, cut into what is read once (the prefix) and what comes per question.

The template is rendered with placeholders, so it is split exactly around the question, whatever it
looks like, and foreign text never passes through it. The prefix ends after the last control token
between the documents and the question: what follows it is a run of its own anyway. Where a template
has none there, the prefix ends after the last line break before the question, and the encoding of
every question is compared with it; where they differ, the cut moves back.

`whole` is the slow twin: for every prefix p and question q, with (drop, tokens) = suffix(p, q),
    whole(p, q) == prefix(p)[: len(prefix(p)) - drop] + tokens
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from preread.errors import RequestError, UnsupportedModel
from preread.models.many import encode_many
from preread.models.template import Template
from preread.models.tokenizer import At, Span, Tokenizer, clip
from preread.types import Message, Prefix

if TYPE_CHECKING:
    from preread.types import Int32Array, Role

_REMEMBERED = 32  # prefixes whose tokens are kept


class _Layout(NamedTuple):
    """Spans before and after the question. gap: how many of the characters just before the
    question lie behind the last foreign text."""

    before: list[Span]
    after: Span
    gap: int


class _Read(NamedTuple):
    """An encoded prefix. tail: spans from a safe place (the anchor) up to the question; tail_ids:
    what of their encoding belongs to the prefix."""

    tokens: Int32Array
    tail: list[Span]
    tail_ids: list[int]
    at: At
    after: Span


class ChatTemplate:
    """Lays out prefixes and questions. Contents are stripped of white space at both ends first, as
    most templates do themselves. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        """Raises UnsupportedModel for a template that does not carry a question unchanged."""
        self.tokenizer = tokenizer
        self._template = template
        self._reads: OrderedDict[Prefix, _Read] = OrderedDict()
        self._lock = threading.Lock()
        try:
            self._lay_out(Prefix("documents"))
        except RequestError as exc:
            raise UnsupportedModel(
                exc.message, hint="Give the model folder another chat_template.jinja."
            ) from exc
        self._answer_run, self._answer_space = self._before_answer()

    def prefix(self, prefix: Prefix) -> Int32Array:
        """Tokens that are read once. Raises RequestError if the template refuses the history."""
        return self._read(prefix).tokens

    def suffix(self, prefix: Prefix, question: str) -> tuple[int, Int32Array]:
        """(drop, tokens): the prompt is prefix(prefix) without its last `drop` tokens, + tokens."""
        read = self._read(prefix)
        ids = self.tokenizer.encode([*read.tail, Span(question.strip()), read.after], read.at)
        common = _common(ids, read.tail_ids)
        return len(read.tail_ids) - common, np.array(ids[common:], dtype=np.int32)

    def suffixes(self, prefix: Prefix, questions: Sequence[str]) -> list[tuple[int, list[int]]]:
        """`suffix` of each, encoded as one batch."""
        read = self._read(prefix)
        asked = [question.strip() for question in questions]
        k, found = len(read.tail_ids), []
        for ids in encode_many(self.tokenizer, read.tail, asked, [read.after], read.at):
            same = k if ids[:k] == read.tail_ids else _common(ids, read.tail_ids)
            found.append((k - same, ids[same:]))
        return found

    def whole(self, prefix: Prefix, question: str) -> Int32Array:
        """The prompt, encoded in one go."""
        laid = self._lay_out(prefix)
        ids = self.tokenizer.encode([*laid.before, Span(question.strip()), laid.after])
        return np.array(ids, dtype=np.int32)

    def counts(self, prefixes: Sequence[Prefix], questions: Sequence[str]) -> list[int]:
        """Prompt tokens of each prefix, or (questions given) of it and its question. See
        Backend.count."""
        if not questions:
            return [len(self.prefix(prefix)) for prefix in prefixes]
        counts = []
        for prefix, question in zip(prefixes, questions, strict=True):
            drop, own = self.suffix(prefix, question)
            counts.append(len(self.prefix(prefix)) - drop + len(own))
        return counts

    def answer_tokens(self, text: str) -> Int32Array:
        """Tokens of an answer that begins with `text`, as they come after the generation prompt
        (some templates put a space between). For scoring labels and continuations."""
        return np.array(self.answers([text])[0], dtype=np.int32)

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """`answer_tokens` of each, encoded as one batch."""
        run, space = self._answer_run, self._answer_space
        base = self.tokenizer.encode([run], At.MIDDLE)
        found = []
        many = encode_many(self.tokenizer, [run, space], texts, [], At.MIDDLE)
        for text, ids in zip(texts, many, strict=True):
            if ids[: len(base)] == base:
                found.append(ids[len(base) :])
            else:  # the text melts into the prompt, which is fixed
                found.append(self.tokenizer.encode([space, Span(text)], At.MIDDLE))
        return found

    def _read(self, prefix: Prefix) -> _Read:
        with self._lock:
            if prefix in self._reads:
                self._reads.move_to_end(prefix)
                return self._reads[prefix]
        read = self._encode(prefix)
        with self._lock:
            self._reads[prefix] = read
            while len(self._reads) > _REMEMBERED:
                self._reads.popitem(last=False)
        return read

    def _encode(self, prefix: Prefix) -> _Read:
        before, after, gap = self._lay_out(prefix)
        text = "".join(span.text for span in before)
        pieces = [piece for piece in self.tokenizer.split(before) if piece.token is not None]
        last = pieces[-1] if pieces else None
        at, anchor, run = At.START, last.start if last else 0, last.end if last else 0
        if last is not None and last.start >= len(text) - gap:
            cut = last.end
        else:
            line = text.rfind("\n", len(text) - gap)
            cut = max(run, line + 1 if line >= 0 else len(text) - gap)
            if (seam := self.tokenizer.seam(text, run, cut)) is not None:
                at, anchor = At.MIDDLE, seam
        head = self.tokenizer.encode(clip(before, 0, anchor))
        tail_ids = self.tokenizer.encode(clip(before, anchor, cut), at)
        tail = clip(before, anchor, len(text))
        # What a plain question would already change at the end is not worth keeping.
        asked = self.tokenizer.encode([*tail, Span("What"), after], at)
        del tail_ids[_common(tail_ids, asked) :]
        tokens = np.array(head + tail_ids, dtype=np.int32)
        tokens.flags.writeable = False
        return _Read(tokens, tail, tail_ids, at, after)

    def _lay_out(self, prefix: Prefix) -> _Layout:
        """As published; where the template refuses, drops, repeats or moves the system text, that
        goes in front of the first user turn."""
        system = prefix.system.strip()
        roles: list[Role] = [turn.role for turn in prefix.history]
        for role in roles:  # templates write it out, so it must be none of the user's making
            if role not in ("system", "user", "assistant"):
                raise RequestError(f"Unknown role {role!r}.", hint="Give user or assistant.")
        texts = [self._content(turn) for turn in prefix.history]
        if system:
            around = self._template.layout(["system", *roles, "user"])
            if around is not None:
                return _interleave(around, [system, *texts])
        around = self._template.layout([*roles, "user"])
        if around is None:
            self._explain(roles)
        if system and "user" in roles:
            first = roles.index("user")
            texts[first] = f"{system}\n\n{texts[first]}".strip()
        laid = _interleave(around, texts)
        if system and "user" not in roles:
            return _Layout([*laid.before, Span(f"{system}\n\n")], laid.after, gap=2)
        return laid

    def _content(self, turn: Message) -> str:
        """Templates of reasoning models drop the thoughts of earlier answers; since they do not see
        the text, it is done here."""
        text = turn.content
        if turn.role == "assistant" and "</think>" in self._template.source:
            text = text.rpartition("</think>")[2]
        return text.strip()

    def _explain(self, roles: Sequence[Role]) -> NoReturn:
        """Raise what the template says against these roles, or that it changes contents."""
        self._template.render([{"role": role, "content": "text"} for role in [*roles, "user"]])
        raise RequestError(
            f"{self._template.where}: the chat template drops, repeats or changes the text of a "
            "turn.",
            hint="Give the model folder another chat_template.jinja.",
        )

    def _before_answer(self) -> tuple[Span, Span]:
        """The run of template text that ends with the generation prompt, and the white space that
        the template puts between that and an answer."""
        prompt = self._template.layout(["user"])
        turn = self._template.layout(["user", "assistant"], generate=False)
        if prompt is None:
            self._explain([])
        ends = Span(prompt[-1], trusted=True)
        pieces = self.tokenizer.split([ends])
        controls = [piece.end for piece in pieces if piece.token is not None]
        run = Span(ends.text[controls[-1] if controls else 0 :], trusted=True)
        space = ""
        if turn is not None and turn[1].startswith(ends.text):
            space = "".join(takewhile(str.isspace, turn[1][len(ends.text) :]))
        return run, Span(space, trusted=True)


def _interleave(around: Sequence[str], texts: Sequence[str]) -> _Layout:
    """Template text around the given texts and, last, the question."""
    before = [Span(around[0], trusted=True)]
    for text, template in zip(texts, around[1:-1], strict=True):
        before += [Span(text), Span(template, trusted=True)]
    return _Layout(before, Span(around[-1], trusted=True), gap=len(around[-2]))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(a, b, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
