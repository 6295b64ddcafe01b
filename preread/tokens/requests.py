"""A request batch -> token batches: the only place, with reply.py, where text meets an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from preread.backend import Choose, Generate, LogLikelihood, Ragged, RequestBatch
from preread.errors import RequestError
from preread.models.text import Text
from preread.models.tokenizer import At
from preread.tokens.batch import ChooseSpec, GenerateSpec, LikelihoodSpec, Spec, TokenBatch
from preread.tokens.grammar import JsonGrammars
from preread.tokens.labels import LabelTrie, label_trie
from preread.tokens.share import share
from preread.types import Prefix

if TYPE_CHECKING:
    from preread.types import Int32Array, Int64Array

_HINT = "See preread.backend.RequestBatch."


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a batch on one prefix (None: on none), as tokens. rows: their numbers."""

    rows: Int64Array
    prefix: Int32Array | None
    batch: TokenBatch


@dataclass(frozen=True, slots=True)
class _Rows:
    """own tokens, prefix tokens used and prefix length, per row; errors: row -> message."""

    own: list[Sequence[int] | Int32Array]
    base: list[int]
    context: list[int]
    errors: dict[int, str]


def check(batch: RequestBatch) -> Int32Array:
    """The prefix of every row (-1: none). Raises RequestError naming row and field."""
    n, prefixes, work = len(batch), len(batch.prefixes), batch.work
    if batch.prefix_of is None:
        prefix_of = np.full(n, 0 if prefixes else -1, np.int32)
    else:
        prefix_of = np.asarray(batch.prefix_of, np.int32)
    if len(prefix_of) != n:
        raise RequestError(f"prefix_of has {len(prefix_of)} entries for {n} prompts.", hint=_HINT)
    if len(bad := np.flatnonzero((prefix_of < -1) | (prefix_of >= prefixes))):
        raise RequestError(
            f"row {bad[0]}: prefix_of is {prefix_of[bad[0]]}, there are {prefixes} prefixes.",
            hint="Number them from 0; -1 is none.",
        )
    if batch.raw and prefixes:
        raise RequestError("prefixes: raw prompts are whole and take none.", hint=_HINT)
    if isinstance(batch.prompts, Ragged) and not batch.raw:
        raise RequestError("prompts: token ids are whole prompts.", hint="Set raw=True.")
    if isinstance(work, Generate):
        _check_generate(work)
    elif isinstance(work, Choose):
        if not work.labels or not all(work.labels) or len({*work.labels}) < len(work.labels):
            raise RequestError(
                f"labels: {work.labels!r}.", hint="Give at least one; none empty, none twice."
            )
    elif len(work.continuations) != n:
        raise RequestError(
            f"continuations: {len(work.continuations)} for {n} prompts.", hint="Give one per row."
        )
    return prefix_of


def _check_generate(work: Generate) -> None:
    sampling = work.sampling
    wrong = {
        f"max_tokens is {work.max_tokens}": work.max_tokens < 1,
        f"temperature is {sampling.temperature}": not 0 <= sampling.temperature < float("inf"),
        f"top_p is {sampling.top_p}": not 0 < sampling.top_p <= 1,
        f"top_k is {sampling.top_k}": sampling.top_k < 0,
        "stop holds an empty string": not all(work.stop),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise RequestError(
                f"{message}.",
                hint="max_tokens >= 1, temperature >= 0, 0 < top_p <= 1, top_k >= 0.",
            )


class Requests:
    """Lays out and encodes batches for one model. Thread-safe."""

    def __init__(
        self, text: Text, vocab_size: int, stop_ids: frozenset[int], private_tokens: int
    ) -> None:
        """stop_ids: tokens that end an answer; private_tokens: see `share`."""
        self._text = text
        self._stops = sorted(stop_ids)
        self._private = private_tokens
        path = text.tokenizer.path
        self._grammars = JsonGrammars(
            lambda: path.read_text(encoding="utf-8"), vocab_size, self._stops
        )

    def parts(self, batch: RequestBatch) -> tuple[list[Part], dict[int, str]]:
        """The batch as tokens, by prefix, and the rows that have none (row -> why). Raises
        RequestError when the whole batch is malformed."""
        prefix_of = check(batch)
        tail: Sequence[Sequence[int] | Int32Array] | None = None
        trie: LabelTrie | None = None
        if isinstance(batch.work, Choose):
            trie = label_trie([self._answer(label, batch.raw) for label in batch.work.labels])
        elif isinstance(batch.work, LogLikelihood):
            tail = self._continuations(batch.work, batch.raw)
        generate = None
        if isinstance(batch.work, Generate):
            generate = self._generate(batch.work, batch.stream)
        rows = self._encode(batch, prefix_of, tail)
        good = np.setdiff1d(np.arange(len(batch)), list(rows.errors))
        seeds = _seeds(batch)
        parts = []
        for number in np.unique(prefix_of[good]).tolist() if len(good) else ():
            mine = good[prefix_of[good] == number]
            prefix = None if number < 0 else self._text.chat.prefix(batch.prefixes[number])
            spec: Spec
            if trie is not None:
                spec = ChooseSpec(trie)
            elif tail is not None:
                spec = LikelihoodSpec(np.array([len(tail[i]) for i in mine.tolist()], np.int32))
            else:
                assert generate is not None
                spec = generate
            parts.append(self._part(batch, rows, mine, prefix, spec, seeds[mine]))
        return parts, rows.errors

    def _part(
        self,
        batch: RequestBatch,
        rows: _Rows,
        mine: Int64Array,
        prefix: Int32Array | None,
        spec: Spec,
        seeds: np.ndarray,
    ) -> Part:
        own = _ragged([rows.own[i] for i in mine.tolist()])
        base = np.array([rows.base[i] for i in mine.tolist()], np.int32)
        shared = prefix is not None and batch.reuse
        tokens = TokenBatch(
            spec=spec,
            own=own,
            groups=[prefix] if shared and prefix is not None else [],
            group_of=np.full(len(mine), 0 if shared else -1, np.int32),
            base=base,
            context=np.array([rows.context[i] for i in mine.tolist()], np.int32),
            seeds=seeds,
            keep=batch.keep,
            reuse=batch.reuse,
        )
        return Part(mine, prefix if shared else None, share(tokens, self._private))

    def _encode(
        self,
        batch: RequestBatch,
        prefix_of: Int32Array,
        tail: Sequence[Sequence[int] | Int32Array] | None,
    ) -> _Rows:
        rows = _Rows([], [], [], {})
        for i, number in enumerate(prefix_of.tolist()):
            base, own, context = 0, np.empty(0, np.int32), 0
            try:
                base, own, context = self._row(batch, i, number)
                if tail is not None:
                    if not len(tail[i]):
                        raise RequestError("the continuation is empty.", hint="Give some text.")
                    own = np.concatenate((own, np.asarray(tail[i], np.int32)))
                    if len(own) == len(tail[i]):
                        raise RequestError("the prompt is empty.", hint="Give at least one token.")
            except RequestError as exc:
                rows.errors[i] = str(exc)
            rows.own.append(own)
            rows.base.append(base)
            rows.context.append(context)
        return rows

    def _row(self, batch: RequestBatch, i: int, number: int) -> tuple[int, Int32Array, int]:
        """(prefix tokens used, own tokens, prefix length)"""
        if isinstance(batch.prompts, Ragged):
            return 0, batch.prompts.row(i), 0
        text, chat = batch.prompts[i], self._text.chat
        if batch.raw:
            return 0, np.array(self._text.tokenizer.prompt_tokens(text), np.int32), 0
        if number < 0:
            return 0, chat.whole(Prefix(""), text), 0
        prefix = batch.prefixes[number]
        length = len(chat.prefix(prefix))
        if not batch.reuse:
            return 0, chat.whole(prefix, text), length
        drop, own = chat.suffix(prefix, text)
        return length - drop, own, length

    def _answer(self, text: str, raw: bool) -> list[int]:
        """Tokens of an answer's beginning, or of what goes on after a raw prompt."""
        if raw:
            return self._text.tokenizer.encode_text(text, At.MIDDLE)
        answer: list[int] = self._text.chat.answer_tokens(text).tolist()
        return answer

    def _continuations(
        self, work: LogLikelihood, raw: bool
    ) -> Sequence[Sequence[int] | Int32Array]:
        if isinstance(work.continuations, Ragged):
            return [work.continuations.row(i) for i in range(len(work.continuations))]
        return [self._answer(text, raw) for text in work.continuations]

    def _generate(self, work: Generate, stream: bool) -> GenerateSpec:
        stops = (
            not work.ignore_eos or work.schema is not None
        )  # a grammar ends where it is complete
        return GenerateSpec(
            max_tokens=work.max_tokens,
            sampling=work.sampling,
            eos=tuple(self._stops) if stops else (),
            grammar=None if work.schema is None else self._grammars.compile(work.schema),
            logprobs=work.logprobs,
            stream=stream or bool(work.stop),  # stop strings are sought as the text grows
        )


def _seeds(batch: RequestBatch) -> np.ndarray:
    """The given seed for every row, so that a row is the same alone and in a crowd; without one,
    each row has its own."""
    work, n = batch.work, len(batch)
    if isinstance(work, Generate) and work.sampling.seed is not None:
        return np.full(n, work.sampling.seed % 2**64, np.uint64)
    return np.random.default_rng().integers(0, 2**64, n, np.uint64)


def _ragged(rows: Sequence[Sequence[int] | Int32Array]) -> Ragged:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return Ragged(values, offsets)
