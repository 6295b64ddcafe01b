"""A row comes in: the columns it begins with, its place on the tree, what it pays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from preread.engine.branch import Branches
from preread.engine.jobs import Job
from preread.engine.prefix import PrefixTree, Segment
from preread.engine.sequence import Sequences
from preread.tokens.batch import ChooseSpec, GenerateSpec, LikelihoodSpec

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
        lengths = np.diff(batch.own.offsets)[rows]
        slots = seqs.open(len(rows), int(lengths.max()) + job.growth, _scores(job))
        found = np.zeros(len(rows), np.int64)
        for i, (slot, row) in enumerate(zip(slots.tolist(), rows.tolist(), strict=True)):
            node, found[i] = self._resident(job, leaf, row)
            own = batch.own.row(row)[found[i] :]
            seqs.tokens[slot, : len(own)] = own
            seqs.branch[slot] = self._branches.open(node, int(batch.base[row] + found[i]))
        base = batch.base[rows].astype(np.int64)
        seqs.job[slots], seqs.row[slots], seqs.kind[slots] = job.number, rows, job.kind
        seqs.queue[slots], seqs.context[slots] = queue, batch.context[rows]
        seqs.base[slots], seqs.prompt[slots] = base + found, lengths - found
        seqs.known[slots] = job.lengths[rows] - found
        seqs.keep[slots] = batch.keep and batch.reuse
        seqs.paid[slots] = np.clip(job.charge - (np.cumsum(base) - base), 0, base)
        job.charge -= int(seqs.paid[slots].sum())
        self._specify(job, slots, rows)
        late = (counts < job.lengths[rows]) & (counts >= seqs.known[slots]) & (job.extra > 0)
        counts = np.maximum(np.minimum(counts, seqs.known[slots]) - late, 1)
        seqs.grow(slots, counts)  # at once: the next group must not count on these pages
        return slots, counts

    def _resident(self, job: Job, leaf: Segment, row: int) -> tuple[Segment, int]:
        """How much further the tree already knows a row's prompt (a kept turn, another batch):
        (segment, own tokens that need not be computed)."""
        batch, spec = job.batch, job.batch.spec
        tail = 1 + (int(spec.counts[row]) if isinstance(spec, LikelihoodSpec) else 0)
        own, base = batch.own.row(row), int(batch.base[row])
        if not batch.reuse or len(own) < tail + LEAST_FOUND:
            return leaf, 0
        node, found = self._tree.follow(leaf, base, own[:-tail])
        found = self._tree.ready(node, base + found) - base
        return (node, found) if found >= LEAST_FOUND else (leaf, 0)

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
                seqs.matchers |= {slot: spec.grammar.start() for slot in slots.tolist()}


def _scores(job: Job) -> int:
    """Log-probabilities that a row of the job collects."""
    spec = job.batch.spec
    if isinstance(spec, ChooseSpec):
        return len(spec.trie.edge_node)
    return int(spec.counts.max(initial=0)) if isinstance(spec, LikelihoodSpec) else 0
