"""What the engine is asked and what it answers, in columns.

A job is one submitted batch. Its rows wait as positions in an array; only running rows take a slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np

from preread.backend import Ragged
from preread.engine.labels import LabelTrie
from preread.engine.reading import Reading
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
    """Options of generated rows. eos: ids that end an answer, () to ignore them."""

    max_tokens: int
    sampling: Sampling
    eos: tuple[int, ...] = ()
    grammar: Grammar | None = None
    logprobs: bool = False


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
    behind as a prefix. reuse False: groups are found by nobody and find nothing."""

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

    def __len__(self) -> int:
        return len(self.own)

    @property
    def kind(self) -> Kind:
        if isinstance(self.spec, GenerateSpec):
            return Kind.GENERATE
        return Kind.CHOOSE if isinstance(self.spec, ChooseSpec) else Kind.LIKELIHOOD


@dataclass(slots=True, eq=False)
class Group:
    """Rows of a job that begin alike, in admission order. reading: held while rows wait; charge:
    tokens of the beginning that its first row pays."""

    tokens: Int32Array
    rows: Int64Array
    charge: int = 0
    reading: Reading | None = None


class Job:
    """A batch on its way. groups: those with rows that have not been admitted, in order; open_rows:
    rows that have not ended; running: rows that hold a slot; admitted: rows that ever did; charge:
    tokens that the next row pays."""

    def __init__(self, number: int, batch: TokenBatch, rows: Int64Array) -> None:
        """rows: those that are to run."""
        self.number = number
        self.batch = batch
        self.kind = batch.kind
        self.open_rows = len(rows)
        self.running = self.admitted = 0
        self.charge = batch.charge
        self.groups = deque(Group(*parts) for parts in _grouped(batch, rows) if len(parts[1]))
        self.lengths = np.diff(batch.own.offsets) - (self.kind == Kind.LIKELIHOOD)


def _grouped(batch: TokenBatch, rows: Int64Array) -> list[tuple[Int32Array, Int64Array]]:
    group_of = batch.group_of[rows]
    counts = np.bincount(group_of + 1, minlength=len(batch.groups) + 1)
    parts = np.split(rows[np.argsort(group_of, kind="stable")], np.cumsum(counts)[:-1])
    return list(zip((np.empty(0, np.int32), *batch.groups), parts, strict=True))


# A row's end as a column value: FINISHES[code]; 0 while it goes on.
FINISHES = (None, Finish.STOP, Finish.LENGTH, Finish.CANCELLED, Finish.ERROR)
GOES_ON, STOP, LENGTH, CANCELLED, ERROR = range(5)


@dataclass(frozen=True, slots=True)
class News:
    """What one step changed for one job, one entry per row. tokens: a new token or -1; logprobs:
    its natural log-probability under the model alone; finish: codes of FINISHES; usage: [n, 4]
    context, cached, computed, output tokens. Of ended choose rows, scores [n, labels] holds
    log P(label); of ended likelihood rows, scores[i, :count] log P of each token, and agree says
    whether all of them were the arg-max."""

    rows: Int32Array
    tokens: Int32Array
    logprobs: Float32Array
    finish: NDArray[np.int8]
    usage: Int32Array
    scores: Float32Array
    agree: NDArray[np.bool_]
    errors: dict[int, str]
