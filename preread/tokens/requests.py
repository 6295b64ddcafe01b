"""A request batch -> token batches: the only place, with reply.py, where text meets an engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from preread.backend import Choose, Generate, Ragged, RequestBatch
from preread.errors import RequestError
from preread.models.text import Text
from preread.tokens.batch import ChooseSpec, GenerateSpec, LikelihoodSpec, Spec, TokenBatch
from preread.tokens.grammar import JsonGrammars
from preread.tokens.labels import LabelTrie, label_trie
from preread.tokens.prompts import Encoded, Prompts
from preread.tokens.ragged import distinct, picked
from preread.tokens.share import share
from preread.types import Prefix

if TYPE_CHECKING:
    from preread.types import Int32Array, Int64Array

WHOLE, SEED = 2**31, 2**63  # that numbers of a request stay below: they are columns of an engine
BLOCK = 1 << 13  # texts encoded at once
_HINT = "See preread.backend.RequestBatch."


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a batch on one prefix (None: on none), as tokens. rows: their numbers; asked: the
    prefix as it was asked for."""

    rows: Int64Array
    prefix: Int32Array | None
    batch: TokenBatch
    asked: Prefix | None = None


Block = tuple[list[Part], dict[int, str]]  # parts, and why rows that are in none have failed


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
        f"max_tokens is {work.max_tokens}": not 1 <= work.max_tokens < WHOLE,
        f"temperature is {sampling.temperature}": not 0 <= sampling.temperature < float("inf"),
        f"top_p is {sampling.top_p}": not 0 < sampling.top_p <= 1,
        f"top_k is {sampling.top_k}": not 0 <= sampling.top_k < WHOLE,
        f"seed is {sampling.seed}": not -SEED <= (sampling.seed or 0) < 2 * SEED,
        "stop holds an empty string": not all(work.stop),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise RequestError(
                f"{message}.",
                hint="max_tokens >= 1, temperature >= 0, 0 < top_p <= 1, top_k >= 0; whole "
                "numbers below 2^31, a seed of 64 bits.",
            )


class Requests:
    """Lays out and encodes batches for one model. Thread-safe."""

    def __init__(
        self, text: Text, vocab_size: int, stop_ids: frozenset[int], private_tokens: int
    ) -> None:
        """stop_ids: tokens that end an answer; private_tokens: see `share`."""
        self._text = text
        self._prompts = Prompts(text)
        self._stops = sorted(stop_ids)
        self._private = private_tokens
        path = text.tokenizer.path
        self._grammars = JsonGrammars(
            lambda: path.read_text(encoding="utf-8"), vocab_size, self._stops
        )

    def parts(self, batch: RequestBatch) -> Block:
        """The batch as tokens, by prefix, and the rows that have none (row -> why). Raises
        RequestError when the whole batch is malformed."""
        blocks = list(self.blocks(batch))
        errors = {row: why for _, some in blocks for row, why in some.items()}
        return [part for parts, _ in blocks for part in parts], errors

    def blocks(self, batch: RequestBatch) -> Iterator[Block]:
        """The same, some thousand texts at a time, so that the first can run while others are
        encoded and what that takes is bounded. At least one block."""
        prefix_of, n = check(batch), len(batch)
        trie: LabelTrie | None = None
        if isinstance(batch.work, Choose):
            trie = label_trie([self._answer(label, batch.raw) for label in batch.work.labels])
        generate = None
        if isinstance(batch.work, Generate):
            generate = self._generate(batch.work, batch.stream)
        seeds = _seeds(batch)
        size = n if isinstance(batch.prompts, Ragged) else BLOCK
        for lo in range(0, max(n, 1), max(size, 1)):
            rows = np.arange(lo, min(lo + size, n))
            read = self._prompts.encode(batch, rows, prefix_of[rows])
            good = rows[~np.isin(rows, list(read.errors))]
            parts = []
            for number in distinct(prefix_of[good]):
                mine = good[prefix_of[good] == number]
                asked = None if number < 0 else batch.prefixes[number]
                prefix = None if asked is None else self._text.chat.prefix(asked)
                spec: Spec
                if trie is not None:
                    spec = ChooseSpec(trie)
                elif generate is not None:
                    spec = generate
                else:
                    spec = LikelihoodSpec(read.tails[mine - lo])
                part = self._part(batch, read, mine, mine - lo, prefix, spec, seeds[mine])
                parts.append(replace(part, asked=asked))
            yield parts, read.errors

    def _part(
        self,
        batch: RequestBatch,
        read: Encoded,
        rows: Int64Array,
        at: Int64Array,
        prefix: Int32Array | None,
        spec: Spec,
        seeds: np.ndarray,
    ) -> Part:
        """rows of the batch, which are rows `at` of what was read."""
        shared = prefix is not None and batch.reuse
        tokens = TokenBatch(
            spec=spec,
            own=picked(read.own, at),
            groups=[prefix] if shared and prefix is not None else [],
            group_of=np.full(len(rows), 0 if shared else -1, np.int32),
            base=read.base[at],
            context=read.context[at],
            seeds=seeds,
            keep=batch.keep,
            reuse=batch.reuse,
        )
        return Part(rows, prefix if shared else None, share(tokens, self._private))

    def _answer(self, text: str, raw: bool) -> list[int]:
        """Tokens of an answer's beginning, or of what goes on after a raw prompt."""
        return self._prompts.answers([text], raw)[0]

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
