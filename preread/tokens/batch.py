"""What an engine is asked and what it answers, in token columns: one form for all engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np

from preread.backend import Ragged
from preread.tokens.labels import LabelTrie
from preread.tokens.ragged import lengths, picked, ranges
from preread.types import Finish, Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Float32Array, Int32Array, Int64Array


class Kind(IntEnum):
    """What a row wants; a column value."""

    GENERATE = 0
    CHOOSE = 1
    LIKELIHOOD = 2


class Matcher(Protocol):
    """A grammar's state in one row. See grammar.py. error: "" while it works."""

    @property
    def error(self) -> str: ...

    def mask(self) -> NDArray[np.bool_]:
        """[V], True where a token may come next."""
        ...

    def accept(self, token: int) -> bool:
        """Take a token; True when nothing may follow (complete, or an error)."""
        ...


class Grammar(Protocol):
    """A compiled grammar that rows start from."""

    def start(self) -> Matcher: ...


@dataclass(frozen=True, slots=True)
class GenerateSpec:
    """Options of generated rows. eos: ids that end an answer, () to ignore them. stream: tell of
    every token; else of a row once, when it ends."""

    max_tokens: int
    sampling: Sampling
    eos: tuple[int, ...] = ()
    grammar: Grammar | None = None
    logprobs: bool = False
    stream: bool = True


@dataclass(frozen=True, slots=True)
class ChooseSpec:
    """Labels as token sequences, in a trie that all rows share."""

    trie: LabelTrie


@dataclass(frozen=True, slots=True)
class LikelihoodSpec:
    """counts: [n] how many of each row's last own tokens are the continuation (>= 1)."""

    counts: Int32Array


Spec = GenerateSpec | ChooseSpec | LikelihoodSpec


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows that share their options. Row i's prompt is groups[group_of[i]][:base[i]] + own.row(i);
    group -1: no shared beginning. own rows have at least one prompt token. charge: prefix tokens
    that were computed for this batch before it was submitted (the first row that runs pays).
    context: [n] prefix length to report. seeds: [n] of sampled rows. keep: leave the rows' KV
    behind as a prefix. reuse False: groups are found by nobody and find nothing. named: a token of
    the groups may be an engine's own name for KV that is not what the tokens say."""

    spec: Spec
    own: Ragged
    groups: Sequence[Int32Array]
    group_of: Int32Array
    base: Int32Array
    context: Int32Array
    seeds: NDArray[np.uint64]
    charge: int = 0
    keep: bool = False
    reuse: bool = True
    named: bool = False

    def __len__(self) -> int:
        return len(self.own)

    def head(self, row: int) -> Int32Array:
        """The shared beginning of a row's prompt."""
        group = int(self.group_of[row])
        return self.groups[group][: self.base[row]] if group >= 0 else self.own.values[:0]

    @property
    def kind(self) -> Kind:
        if isinstance(self.spec, GenerateSpec):
            return Kind.GENERATE
        return Kind.CHOOSE if isinstance(self.spec, ChooseSpec) else Kind.LIKELIHOOD


# A row's end as a column value: FINISHES[code]; 0 while it goes on.
FINISHES = (None, Finish.STOP, Finish.LENGTH, Finish.CANCELLED, Finish.ERROR)
GOES_ON, STOP, LENGTH, CANCELLED, ERROR = range(5)


@dataclass(frozen=True, slots=True)
class News:
    """What one step changed for one job, one entry per row. tokens: those that are new to the
    reader; logprobs: of tokens.values, natural, under the model alone (zeros if nobody asked);
    finish: codes of FINISHES; usage: [n, 4] context, cached, computed, output tokens; age: [n]
    seconds since the row's first token. Of ended choose rows, scores [n, labels] holds
    log P(label); of ended likelihood rows, scores[i, :count] log P of each token, and agree says
    whether all of them were the arg-max."""

    rows: Int32Array
    tokens: Ragged
    logprobs: Float32Array
    finish: NDArray[np.int8]
    usage: Int32Array
    age: Float32Array
    scores: Float32Array
    agree: NDArray[np.bool_]
    errors: dict[int, str]

    def only(self, which: Int64Array) -> News:
        """The entries `which`, in that order."""
        if len(which) == len(self.rows) and (which == np.arange(len(which))).all():
            return self
        rows = self.rows[which]
        values = ranges(self.tokens.offsets[which], lengths(self.tokens)[which])
        return News(
            rows, picked(self.tokens, which), self.logprobs[values], self.finish[which],
            self.usage[which], self.age[which], self.scores[which], self.agree[which],
            {row: self.errors[row] for row in rows.tolist() if row in self.errors},
        )  # fmt: skip


NOT_FINITE = (
    "The model's output is not finite (NaN or infinity). Try --dtype float32; if that helps, the "
    "weights overflow in half precision."
)
