"""Rows that wait, and how they come in: by group, once the beginning they share is resident.

A cold beginning is read once, for the first group that wants it; the others wait for it. Whose turn
it is, turns.py knows; who gets memory for a prefix, line.py; what a row begins with, entry.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from preread.engine.branch import Branches
from preread.engine.entry import Entry
from preread.engine.jobs import Group, Job
from preread.engine.line import Line
from preread.engine.pages import Pages
from preread.engine.prefix import PrefixTree
from preread.engine.reading import Reading, Readings
from preread.engine.sequence import FREE, RUNNING, Sequences
from preread.engine.turns import Lane, Turns, even, portions
from preread.tokens.batch import GenerateSpec

if TYPE_CHECKING:
    from preread.types import Int64Array

READ_AHEAD = 4  # prefixes being read at once for waiting groups
LOOK_AHEAD = 64  # jobs of a context (beyond the free slots) and groups of a job looked at in a step


class Admitted(NamedTuple):
    """slots taken, and the own tokens of each that are to be computed at once; they have pages."""

    slots: Int64Array
    counts: Int64Array


class Turn(NamedTuple):
    """A lane with groups whose beginning is there; running: rows of it that run."""

    lane: Lane
    groups: list[Group]
    running: int

    @property
    def waiting(self) -> int:
        return sum(len(group.rows) for group in self.groups)


class Admission:
    """Jobs with waiting rows. spent: tokens that the last `admit` added to the step."""

    def __init__(
        self, tree: PrefixTree, readings: Readings, line: Line, seqs: Sequences,
        branches: Branches, pages: Pages,
    ) -> None:  # fmt: skip
        self._tree = tree
        self._readings = readings
        self._line = line
        self._seqs = seqs
        self._pages = pages
        self._entry = Entry(tree, seqs, branches)
        self._turns = Turns(seqs)
        self._begun: dict[Group, Reading] = {}  # what waiting groups begin with, once looked at
        self.jobs: dict[int, Job] = {}
        self.spent = 0

    def add(self, job: Job, now: float, *, prepared: bool = False) -> None:
        """Queue a job. prepared: its prefix was made ready for it, and is not given up before some
        of its rows have run."""
        self.jobs[job.number] = job
        self._turns.add(job)
        for group in job.groups if prepared else ():
            if self._resident(group):
                reading = self._begun[group] = _reading(group)
                reading.due = self._readings.place(reading, now)

    def promise(self, job: Job, now: float) -> Reading:
        """Queue a job of one group, whose beginning has its place and is promised: its rows come
        into the next step."""
        self.jobs[job.number] = job
        self._turns.add(job)
        (group,) = job.groups
        reading = self._begun[group] = _reading(group)
        reading.promised = self._readings.place(reading, now)
        return reading

    def make_way(self, now: float) -> None:
        """Give up what stands in the way of one that has waited for memory long enough."""
        for group in self.wanting(self._line.must_yield):
            self._give_up(group, now)

    def look(self, limit: int, budget: int, now: float) -> None:
        """See to it that what comes next is read: a few beginnings at a time, more if they are so
        short that a step of `budget` tokens holds them all."""
        cold: dict[object, int] = {}  # tokens, by place; by reading where it has none yet
        free = self._free(limit)
        for context, _ in self._turns.contexts():
            if len(cold) >= READ_AHEAD and free <= 0:
                return
            for lane, _ in self._turns.lanes(context, LOOK_AHEAD + max(0, free)):
                self._look(lane, free, budget, cold, now)

    def _look(
        self, lane: Lane, free: int, budget: int, cold: dict[object, int], now: float
    ) -> None:
        """Begin with groups of a lane, in turn, until what is ready takes all slots and tokens."""
        for group in islice(lane.groups, LOOK_AHEAD):
            if (reading := self._begun.get(group)) is None:
                full = len(cold) >= READ_AHEAD and sum(cold.values()) >= budget
                if full and not self._resident(group):
                    return
                reading = self._begin(group, now)
            if not self._readings.done(reading):
                cold[reading.leaf or reading] = reading.upto - reading.cached
                continue
            free -= len(group.rows)
            budget -= int(group.job.lengths[group.rows[:1024]].sum())
            if free <= 0 or budget <= 0:
                return  # its rows come before the groups behind it

    def admit(self, budget: int, limit: int, fresh: bool, now: float) -> Admitted:
        """Let rows in: at most `budget` new tokens, `limit` rows running in all. fresh: nothing
        else is read in this step. What waits for pages, or for room for its labels, is not
        overtaken."""
        came, self.spent = [Admitted(np.empty(0, np.int64), np.empty(0, np.int64))], 0
        for turn, share in self._shares(self._free(limit) if budget > 0 else 0):
            took = self._take(turn, share, budget, fresh, now)
            came.extend(took)
            if share and not took and not turn.running:
                break
        return Admitted(*(np.concatenate(column) for column in zip(*came, strict=True)))

    def remove(self, job: Job, rows: Int64Array, now: float) -> Int64Array:
        """Take waiting rows out; returns those that did wait."""
        found = [np.empty(0, np.int64)]
        for group in tuple(job.groups):
            gone = np.isin(group.rows, rows)
            found.append(group.rows[gone])
            group.rows = group.rows[~gone]
            if not len(group.rows):
                self._drop(group, now)
        return np.concatenate(found)

    def wanting(self, lost: Callable[[Reading], bool]) -> list[Group]:
        """The groups that wait for such a reading."""
        return [group for group, reading in self._begun.items() if lost(reading)]

    def check(self) -> None:
        self._turns.check()
        waiting = {group for job in self.jobs.values() for group in job.groups}
        assert set(self._begun) <= waiting, "a reading that nobody waits for"

    def _free(self, limit: int) -> int:
        """Slots that new rows may take."""
        state = self._seqs.state
        return min(int((state == FREE).sum()), limit - int((state == RUNNING).sum()))

    def _resident(self, group: Group) -> bool:
        return group.job.batch.reuse and self._tree.resident(group.tokens)

    def _begin(self, group: Group, now: float) -> Reading:
        """Have the group's beginning read."""
        reading = self._begun[group] = _reading(group)
        self._line.join(reading, now)
        return reading

    def _give_up(self, group: Group, now: float) -> None:
        if (reading := self._begun.pop(group, None)) is not None:
            self._line.leave(reading, now)

    def _drop(self, group: Group, now: float) -> None:
        """It has no more waiting rows."""
        del group.job.groups[group]
        self._turns.drop(group)
        self._give_up(group, now)

    def _shares(self, free: int) -> Iterator[tuple[Turn, int]]:
        """Whose turn it is, and how many rows each may let in."""
        queue = []
        for context, running in self._turns.contexts() if free > 0 else ():
            lanes = [
                Turn(lane, groups, runs)
                for lane, runs in self._turns.lanes(context, LOOK_AHEAD + free)
                if (groups := [g for g in islice(lane.groups, LOOK_AHEAD) if self._is_ready(g)])
            ]
            queue.append((running, lanes))
        waiting = [sum(turn.waiting for turn in lanes) for _, lanes in queue]
        shares = even(free, [running for running, _ in queue], waiting)
        for share, (_, lanes) in zip(shares, queue, strict=True):
            parts = even(share, [t.running for t in lanes], [t.waiting for t in lanes])
            yield from zip(lanes, parts, strict=True)

    def _is_ready(self, group: Group) -> bool:
        return group in self._begun and self._readings.done(self._begun[group])

    def _take(self, turn: Turn, share: int, budget: int, fresh: bool, now: float) -> list[Admitted]:
        """Let in at most `share` rows of a lane."""
        out: list[Admitted] = []
        for group in turn.groups:
            job, reading = group.job, self._begun[group]
            room = budget - self.spent
            rows, counts = self._fit(group, room, share, fresh and not self.spent)
            if not len(rows):
                break
            assert reading.leaf is not None
            job.charge += self._readings.settle(reading)
            reading.due = False
            queue = turn.lane.context.number
            slots, counts = self._entry.open(job, reading.leaf, queue, rows, counts)
            group.rows = group.rows[len(rows) :]
            out.append(Admitted(slots, counts))
            labels = job.extra * int((counts == self._seqs.known[slots]).sum())
            self.spent += int(counts.sum()) + labels
            share -= len(rows)
            if len(group.rows):
                break
            self._drop(group, now)
        if out:
            self._turns.served(turn.lane)
        return out

    def _fit(
        self, group: Group, budget: int, share: int, fresh: bool
    ) -> tuple[Int64Array, Int64Array]:
        """The first rows of the group that fit share, budget and pages, and their token counts. One
        page in reserve for every running row keeps preemption rare."""
        job, seqs = group.job, self._seqs
        rows = group.rows[:share]
        lengths = job.lengths[rows]
        counts = portions(budget, lengths, job.extra, fresh)
        spec = job.batch.spec
        once = not job.batch.keep and not (isinstance(spec, GenerateSpec) and spec.max_tokens > 1)
        pages = -(-lengths // self._pages.page_tokens)
        pages[(counts == lengths) & once] = 0
        running = int((seqs.state == RUNNING).sum())
        used = np.cumsum(pages) + running + np.arange(len(rows))
        fits = (counts > 0) & (used <= self._pages.free)
        n = len(rows) if fits.all() else int(fits.argmin())
        return rows[:n], counts[:n]


def _reading(group: Group) -> Reading:
    linked = group.job.batch.reuse
    return Reading(group.tokens, linked=linked, outside=False, active=True)
