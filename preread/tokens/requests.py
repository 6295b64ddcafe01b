"""A request batch -> token batches: the only place, with reply.py, where text meets an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from preread.backend import Choose, Generate, LogLikelihood, Ragged, RequestBatch
from preread.errors import RequestError
from preread.models.many import encode_many
from preread.models.text import Text
from preread.models.tokenizer import At
from preread.tokens.batch import ChooseSpec, GenerateSpec, LikelihoodSpec, Spec, TokenBatch
from preread.tokens.grammar import JsonGrammars
from preread.tokens.labels import LabelTrie, label_trie
from preread.tokens.ragged import beside, distinct, lengths, picked, stacked
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

    own: Ragged
    base: Int32Array
    context: Int32Array
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
        tail: Ragged | None = None
        trie: LabelTrie | None = None
        if isinstance(batch.work, Choose):
            trie = label_trie([self._answer(label, batch.raw) for label in batch.work.labels])
        elif isinstance(batch.work, LogLikelihood):
            tail = self._continuations(batch.work, batch.raw)
        generate = None
        if isinstance(batch.work, Generate):
            generate = self._generate(batch.work, batch.stream)
        rows = self._encode(batch, prefix_of, tail)
        good = np.ones(len(batch), bool)
        good[list(rows.errors)] = False
        seeds = _seeds(batch)
        parts = []
        for number in distinct(prefix_of[good]):
            mine = np.flatnonzero(good & (prefix_of == number))
            prefix = None if number < 0 else self._text.chat.prefix(batch.prefixes[number])
            spec: Spec
            if trie is not None:
                spec = ChooseSpec(trie)
            elif tail is not None:
                spec = LikelihoodSpec(lengths(tail)[mine].astype(np.int32))
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
        shared = prefix is not None and batch.reuse
        tokens = TokenBatch(
            spec=spec,
            own=picked(rows.own, mine),
            groups=[prefix] if shared and prefix is not None else [],
            group_of=np.full(len(mine), 0 if shared else -1, np.int32),
            base=rows.base[mine],
            context=rows.context[mine],
            seeds=seeds,
            keep=batch.keep,
            reuse=batch.reuse,
        )
        return Part(mine, prefix if shared else None, share(tokens, self._private))

    def _encode(self, batch: RequestBatch, prefix_of: Int32Array, tail: Ragged | None) -> _Rows:
        if isinstance(batch.prompts, Ragged):
            none = np.zeros(len(batch), np.int32)
            rows = _Rows(batch.prompts, none, none, {})
        else:
            rows = self._encode_texts(batch, batch.prompts, prefix_of)
        if tail is None:
            return rows
        for row in np.flatnonzero(lengths(rows.own) == 0).tolist():
            rows.errors.setdefault(row, "the prompt is empty. Give at least one token.")
        for row in np.flatnonzero(lengths(tail) == 0).tolist():
            rows.errors[row] = "the continuation is empty. Give some text."
        return replace(rows, own=beside(rows.own, tail))

    def _encode_texts(
        self, batch: RequestBatch, prompts: Sequence[str], prefix_of: Int32Array
    ) -> _Rows:
        own: list[list[int]] = [[]] * len(batch)
        base, context = np.zeros((2, len(batch)), np.int32)
        errors: dict[int, str] = {}
        for number in distinct(prefix_of):
            mine = np.flatnonzero(prefix_of == number)
            texts = [prompts[i] for i in mine.tolist()]
            try:
                found = self._texts(batch, number, texts)
            except RequestError:  # one of them is at fault, or all
                found = self._one_by_one(batch, number, texts, mine, errors)
            context[mine], drops, ids = found
            base[mine] = np.where(context[mine] > 0, context[mine] - drops, 0)
            for i, row in zip(mine.tolist(), ids, strict=True):
                own[i] = row
        return _Rows(stacked(own), base, context, errors)

    def _texts(
        self, batch: RequestBatch, number: int, texts: Sequence[str]
    ) -> tuple[int, list[int], list[list[int]]]:
        """Prompts on one prefix (-1: none): (its length, tokens of it that each does not use, own
        tokens of each)."""
        chat, tokenizer = self._text.chat, self._text.tokenizer
        if batch.raw:
            ids = encode_many(tokenizer, [], texts, [])
            return 0, [0] * len(ids), [[*tokenizer.bos_ids, *row] for row in ids]
        prefix = batch.prefixes[number] if number >= 0 else Prefix("")
        head = chat.prefix(prefix)
        if not batch.reuse:
            whole = [chat.whole(prefix, text).tolist() for text in texts]
            return len(head) if number >= 0 else 0, [len(head)] * len(texts), whole
        drops, ids = map(list, zip(*chat.suffixes(prefix, texts), strict=True))
        if number >= 0:
            return len(head), drops, ids
        kept = head.tolist()
        whole = [kept[: len(kept) - drop] + row for drop, row in zip(drops, ids, strict=True)]
        return 0, drops, whole

    def _one_by_one(
        self, batch: RequestBatch, number: int, texts: Sequence[str], rows: Int64Array,
        errors: dict[int, str],
    ) -> tuple[int, list[int], list[list[int]]]:  # fmt: skip
        """`_texts`, but what is wrong with one is its own error."""
        length, drops, own = 0, [0] * len(texts), [list[int]() for _ in texts]
        for i, text in enumerate(texts):
            try:
                length, (drops[i],), (own[i],) = self._texts(batch, number, [text])
            except RequestError as exc:
                errors[int(rows[i])] = str(exc)
        return length, drops, own

    def _answer(self, text: str, raw: bool) -> list[int]:
        """Tokens of an answer's beginning, or of what goes on after a raw prompt."""
        if raw:
            return self._text.tokenizer.encode_text(text, At.MIDDLE)
        answer: list[int] = self._text.chat.answer_tokens(text).tolist()
        return answer

    def _continuations(self, work: LogLikelihood, raw: bool) -> Ragged:
        if isinstance(work.continuations, Ragged):
            return work.continuations
        return stacked([self._answer(text, raw) for text in work.continuations])

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
