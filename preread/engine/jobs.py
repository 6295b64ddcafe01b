"""A batch on its way through the engine. Its rows wait as positions in an array; only running rows
take a slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from preread.tokens.batch import ChooseSpec, GenerateSpec, Kind, LikelihoodSpec, TokenBatch
from preread.tokens.ragged import lengths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preread.types import Int32Array, Int64Array


@dataclass(slots=True, eq=False)
class Group:
    """Waiting rows of a job that begin alike, in admission order; `tokens` is their beginning."""

    job: Job
    tokens: Int32Array
    rows: Int64Array

    @property
    def context(self) -> bytes:
        """The part of the beginning that the requests name, as a key."""
        return self.tokens[: self.job.batch.context[self.rows[0]]].tobytes()


class Job:
    """A batch on its way. groups: those with waiting rows; open_rows: rows that have not ended;
    charge: tokens that the next rows pay; growth: own tokens that a row may add to its prompt;
    extra: label nodes that a row's last token brings with it; lengths: [n] own tokens to compute;
    tails: [n] own tokens at the end that are always computed; scores: log-probabilities that a row
    collects at most; streams: somebody reads along."""

    def __init__(self, number: int, batch: TokenBatch, rows: Int64Array) -> None:
        """rows: those that are to run."""
        spec = batch.spec
        self.number = number
        self.batch = batch
        self.kind = batch.kind
        self.open_rows = len(rows)
        self.charge = batch.charge
        self.growth = spec.max_tokens if isinstance(spec, GenerateSpec) else 0
        self.extra = len(spec.trie.tokens) if isinstance(spec, ChooseSpec) else 0
        self.lengths = lengths(batch.own) - (self.kind == Kind.LIKELIHOOD)
        self.tails = np.ones(len(batch), np.int64)
        self.scores = len(spec.trie.edge_node) if isinstance(spec, ChooseSpec) else 0
        self.streams = not isinstance(spec, GenerateSpec) or spec.stream
        if isinstance(spec, GenerateSpec) and spec.logprobs:
            self.scores = spec.max_tokens
        elif isinstance(spec, LikelihoodSpec):
            self.tails += spec.counts
            self.scores = int(spec.counts.max(initial=0))
        self.groups = dict.fromkeys(self._grouped(rows))  # a set that keeps its order

    def _grouped(self, rows: Int64Array) -> Iterator[Group]:
        batch = self.batch
        group_of = batch.group_of[rows]
        counts = np.bincount(group_of + 1, minlength=len(batch.groups) + 1)
        parts = np.split(rows[np.argsort(group_of, kind="stable")], np.cumsum(counts)[:-1])
        for tokens, part in zip((np.empty(0, np.int32), *batch.groups), parts, strict=True):
            if len(part):
                yield Group(self, tokens, part)
