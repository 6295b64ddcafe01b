"""A row comes in: the columns it begins with, its place on the tree, what it pays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from preread.engine.branch import Branches
from preread.engine.jobs import Job
from preread.engine.prefix import PrefixTree
from preread.engine.segment import Segment
from preread.engine.sequence import Sequences
from preread.tokens.batch import GenerateSpec, LikelihoodSpec
from preread.tokens.ragged import distinct, picked, ranges

if TYPE_CHECKING:
    from preread.types import Int64Array

LEAST_FOUND = 16  # tokens; a shorter find is not worth a branch of its own


class Entry:
    """Fills the columns of rows that are let in."""

    def __init__(self, tree: PrefixTree, seqs: Sequences, branches: Branches) -> None:
        self._tree = tree
        self._seqs = seqs
        self._branches = branches

    def open(
        self, job: Job, leaf: Segment, queue: int, rows: Int64Array, counts: Int64Array
    ) -> tuple[Int64Array, Int64Array]:
        """Take slots for rows (at least one) that begin on the path to `leaf`, and pages for their
        first `counts` own tokens: (slots, own tokens of each that remain to be computed of these).
        The job's charge is paid by the first rows, by each as far as its beginning reaches."""
        seqs, batch = self._seqs, job.batch
        lengths = batch.own.offsets[rows + 1] - batch.own.offsets[rows]
        slots = seqs.open(len(rows), int(lengths.max()) + job.growth, job.scores)
        base = batch.base[rows].astype(np.int64)
        found = np.zeros(len(rows), np.int64)
        for start in distinct(base):
            same = np.flatnonzero(base == start)
            seqs.branch[slots[same]], found[same] = self._places(job, leaf, start, rows[same])
        own = picked(batch.own, rows, found)
        place = ranges(slots * seqs.tokens.shape[1], lengths - found)
        seqs.tokens.reshape(-1)[place] = own.values
        seqs.job[slots], seqs.row[slots], seqs.kind[slots] = job.number, rows, job.kind
        seqs.queue[slots], seqs.context[slots] = queue, batch.context[rows]
        seqs.extra[slots] = job.extra
        seqs.base[slots], seqs.prompt[slots] = base + found, lengths - found
        seqs.known[slots] = job.lengths[rows] - found
        seqs.keep[slots] = batch.keep and batch.reuse
        seqs.paid[slots] = np.clip(job.charge - (np.cumsum(base) - base), 0, base)
        job.charge -= int(seqs.paid[slots].sum())
        self._specify(job, slots, rows)
        late = (counts < job.lengths[rows]) & (counts >= seqs.known[slots]) & (job.extra > 0)
        counts = np.maximum(np.minimum(counts, seqs.known[slots]) - late, 1)
        # At once: the next group must not count on these pages.
        seqs.grow(slots, seqs.pages_needed(slots, counts))
        return slots, counts

    def _places(
        self, job: Job, leaf: Segment, base: int, rows: Int64Array
    ) -> tuple[Int64Array, Int64Array]:
        """Where rows that have `base` tokens on the path to `leaf` stand on the tree: (branches,
        own tokens that need not be computed). Most stand there, in one place; a few may find that
        the tree knows their prompt further (a kept turn, another batch)."""
        own, found = job.batch.own, np.zeros(len(rows), np.int64)
        branch = np.full(len(rows), -1, np.int64)
        most = own.offsets[rows + 1] - own.offsets[rows] - job.tails[rows]
        long = np.flatnonzero(most >= LEAST_FOUND) if job.batch.reuse else rows[:0]
        if len(long):
            first = own.offsets[rows[long]][:, None] + np.arange(LEAST_FOUND)
            long = long[self._tree.goes_on(leaf, base, own.values[first])]
        for i in long.tolist():
            node, more = self._tree.follow(leaf, base, own.row(int(rows[i]))[: most[i]])
            more = self._tree.ready(node, base + more) - base
            if more >= LEAST_FOUND:
                found[i], branch[i] = more, self._branches.open(node, base + more)
        if len(stay := np.flatnonzero(branch < 0)):
            branch[stay] = self._branches.open(leaf, base, len(stay))
        return branch, found

    def _specify(self, job: Job, slots: Int64Array, rows: Int64Array) -> None:
        """Columns that depend on what is asked."""
        seqs, spec, seeds = self._seqs, job.batch.spec, job.batch.seeds
        seqs.temperature[slots], seqs.logprobs[slots] = 0.0, False
        if isinstance(spec, LikelihoodSpec):
            seqs.prompt[slots] -= spec.counts[rows]
        elif isinstance(spec, GenerateSpec):
            sampling = spec.sampling
            seqs.max_new[slots] = spec.max_tokens
            seqs.temperature[slots] = sampling.temperature
            seqs.top_p[slots], seqs.top_k[slots] = sampling.top_p, sampling.top_k
            seqs.seed[slots], seqs.logprobs[slots] = seeds[rows], spec.logprobs
            if spec.grammar is not None:
                seqs.matchers.update((slot, spec.grammar.start()) for slot in slots.tolist())
