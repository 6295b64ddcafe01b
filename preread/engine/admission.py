"""Rows that wait, and how they come in: by group, once the beginning they share is resident.

A cold beginning is read once, for the first group that wants it; the others wait for it. The job
with the fewest running rows comes first, so that a small question is not stuck behind a large
batch.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from preread.engine.branch import Branches
from preread.engine.jobs import Group, Job
from preread.engine.pages import Pages
from preread.engine.prefix import PrefixTree, Segment
from preread.engine.reading import Readings
from preread.engine.sequence import FREE, RUNNING, Sequences
from preread.tokens.batch import ChooseSpec, GenerateSpec, LikelihoodSpec

if TYPE_CHECKING:
    from preread.types import Int64Array

LEAST_FOUND = 16  # tokens; a shorter find is not worth a branch of its own
READ_AHEAD = 4  # prefixes being read at once for waiting groups
LOOK_AHEAD = 64  # groups of a job looked at in one step


class Admitted(NamedTuple):
    """slots taken, and the own tokens of each that are to be computed at once; they have pages."""

    slots: Int64Array
    counts: Int64Array


class Admission:
    """Jobs with waiting rows. `blocked`: a group that found no memory at the last call."""

    def __init__(
        self, tree: PrefixTree, readings: Readings, seqs: Sequences, branches: Branches,
        pages: Pages,
    ) -> None:  # fmt: skip
        self._tree = tree
        self._readings = readings
        self._seqs = seqs
        self._branches = branches
        self._pages = pages
        self.jobs: dict[int, Job] = {}
        self.blocked: tuple[Job, Group] | None = None

    def admit(self, budget: int, limit: int, now: float) -> Admitted:
        """Let rows in: at most `budget` new tokens, `limit` rows running in all."""
        slots, counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        self.blocked = None
        cold = 0  # groups whose beginning is being read
        for job in sorted(self.jobs.values(), key=lambda job: (job.running, job.admitted)):
            for group in list(islice(job.groups, LOOK_AHEAD)):
                # Who waits for memory is not overtaken by new prefixes, or it might wait for ever.
                read = cold < READ_AHEAD and self.blocked is None
                if group.reading is None and not self._hold(job, group, now, read):
                    break
                assert group.reading is not None
                if self._readings.ready(group.reading) < group.reading.upto:
                    cold += 1
                    continue
                took = self._open(job, group, *self._fit(job, group, budget, limit))
                slots.append(took.slots)
                counts.append(took.counts)
                budget -= int(took.counts.sum())
                if not len(took.slots) and not job.running:
                    budget = 0  # it waits for pages: nor is it overtaken here
                if len(group.rows):
                    break
                self.drop(job, group, now)
        return Admitted(np.concatenate(slots), np.concatenate(counts))

    def drop(self, job: Job, group: Group, now: float) -> None:
        """A group has no more waiting rows."""
        job.groups.remove(group)
        if group.reading is not None:
            self._readings.release(group.reading, now)

    def remove(self, job: Job, rows: Int64Array, now: float) -> Int64Array:
        """Take waiting rows out; returns those that did wait."""
        found = [np.empty(0, np.int64)]
        for group in tuple(job.groups):
            gone = np.isin(group.rows, rows)
            found.append(group.rows[gone])
            group.rows = group.rows[~gone]
            if not len(group.rows):
                self.drop(job, group, now)
        return np.concatenate(found)

    def _hold(self, job: Job, group: Group, now: float, cold: bool) -> bool:
        """Take the group's place on the tree. cold: also if there is something to be read."""
        if not cold and (not job.batch.reuse or not self._tree.resident(group.tokens)):
            return False
        reading = self._readings.hold(group.tokens, now, linked=job.batch.reuse)
        if reading is None:
            self.blocked = self.blocked or (job, group)
            return False
        reading.active, reading.outside = True, False
        group.reading = reading
        group.charge += self._tree.claim(reading.leaf, reading.upto)
        return True

    def _fit(
        self, job: Job, group: Group, budget: int, limit: int
    ) -> tuple[Int64Array, Int64Array]:
        """The first rows of the group that fit budget, slots and pages, and their token counts. One
        page in reserve for every running row keeps preemption rare."""
        seqs = self._seqs
        running = int((seqs.state == RUNNING).sum())
        free = min(int((seqs.state == FREE).sum()), limit - running)
        rows = group.rows[: max(0, free)]
        lengths = job.lengths[rows]
        counts = np.clip(budget - (np.cumsum(lengths) - lengths), 0, lengths)
        spec = job.batch.spec
        once = not job.batch.keep and not (isinstance(spec, GenerateSpec) and spec.max_tokens > 1)
        pages = -(-lengths // self._pages.page_tokens)
        pages[(counts == lengths) & once] = 0
        used = np.cumsum(pages) + running + np.arange(len(rows))
        fits = (counts > 0) & (used <= self._pages.free)
        n = len(rows) if fits.all() else int(fits.argmin())
        return rows[:n], counts[:n]

    def _open(self, job: Job, group: Group, rows: Int64Array, counts: Int64Array) -> Admitted:
        if not len(rows):
            return Admitted(rows, counts)
        assert group.reading is not None
        seqs, batch, spec = self._seqs, job.batch, job.batch.spec
        lengths = np.diff(batch.own.offsets)[rows]
        slots = seqs.open(len(rows), int(lengths.max()) + _growth(job), _scores(job))
        group.rows = group.rows[len(rows) :]
        job.running += len(rows)
        job.admitted += len(rows)
        found = np.zeros(len(rows), np.int64)
        for i, (slot, row) in enumerate(zip(slots.tolist(), rows.tolist(), strict=True)):
            leaf, found[i] = self._resident(job, group.reading.leaf, row)
            own = batch.own.row(row)[found[i] :]
            seqs.tokens[slot, : len(own)] = own
            seqs.branch[slot] = self._branches.open(leaf, int(batch.base[row] + found[i]))
        seqs.job[slots], seqs.row[slots], seqs.kind[slots] = job.number, rows, job.kind
        seqs.base[slots], seqs.context[slots] = batch.base[rows] + found, batch.context[rows]
        seqs.known[slots] = job.lengths[rows] - found
        seqs.prompt[slots] = lengths - found
        seqs.keep[slots] = batch.keep and batch.reuse
        seqs.paid[slots[0]] = min(job.charge + group.charge, int(batch.base[rows[0]]))
        job.charge = group.charge = 0
        seqs.temperature[slots], seqs.logprobs[slots] = 0.0, False
        if isinstance(spec, LikelihoodSpec):
            seqs.prompt[slots] -= spec.counts[rows]
        elif isinstance(spec, GenerateSpec):
            self._sampling(slots, rows, spec, batch.seeds)
        counts = np.minimum(counts, seqs.known[slots])
        seqs.grow(slots, counts)  # at once: the next group must not count on these pages
        return Admitted(slots, counts)

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

    def _sampling(
        self, slots: Int64Array, rows: Int64Array, spec: GenerateSpec, seeds: np.ndarray
    ) -> None:
        seqs, sampling = self._seqs, spec.sampling
        seqs.max_new[slots] = spec.max_tokens
        seqs.temperature[slots] = sampling.temperature
        seqs.top_p[slots], seqs.top_k[slots] = sampling.top_p, sampling.top_k
        seqs.seed[slots], seqs.logprobs[slots] = seeds[rows], spec.logprobs
        if spec.grammar is not None:
            for slot in slots.tolist():
                seqs.matchers[slot] = spec.grammar.start()


def _growth(job: Job) -> int:
    """Own tokens a row may add to its prompt."""
    spec = job.batch.spec
    return spec.max_tokens if isinstance(spec, GenerateSpec) else 0


def _scores(job: Job) -> int:
    """Log-probabilities a row of the job collects."""
    spec = job.batch.spec
    if isinstance(spec, ChooseSpec):
        return len(spec.trie.edge_node)
    return int(spec.counts.max(initial=0)) if isinstance(spec, LikelihoodSpec) else 0
