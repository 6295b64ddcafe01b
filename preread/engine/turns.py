"""Whose turn it is: the queue of what waits, and fair shares of what is free.

Free slots are shared evenly, counting the rows that run already (max-min fairness): first between
contexts, then between the jobs of one. Among equals, whoever was let in longest ago comes first. So
a question does not wait behind a batch of 100,000, nor one context behind another's queue.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from preread.engine.jobs import Group, Job
from preread.engine.sequence import FREE, Sequences
from preread.tokens.ragged import counted

if TYPE_CHECKING:
    from preread.types import Int64Array


@dataclass(slots=True, eq=False)
class Lane:
    """The groups of one job on one context that have waiting rows, in order."""

    job: Job
    context: Context
    groups: deque[Group] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Context:
    """Jobs with waiting rows on one context: the tokens that their requests name (none: b""). They
    are in the order of their turns. number: the `queue` column of its rows."""

    key: bytes
    number: int
    lanes: deque[Lane] = field(default_factory=deque)


class Turns:
    """All that waits. A context is remembered while rows of it run, so that they count."""

    def __init__(self, seqs: Sequences) -> None:
        self._seqs = seqs
        self._contexts: dict[bytes, Context] = {}  # in the order of their turns
        self._lanes: dict[Group, Lane] = {}
        self._running: Counter[tuple[int, int]] = Counter()  # (queue, job) -> rows that run
        self._number = 0

    def add(self, job: Job) -> None:
        """Queue a job's groups."""
        lanes: dict[bytes, Lane] = {}
        for group in job.groups:
            key = group.context
            if (lane := lanes.get(key)) is None:
                lane = lanes[key] = Lane(job, self._context(key))
                lane.context.lanes.append(lane)
            lane.groups.append(group)
            self._lanes[group] = lane

    def drop(self, group: Group) -> None:
        """It has no waiting rows any more."""
        lane = self._lanes.pop(group)
        lane.groups.remove(group)
        if not lane.groups:
            lane.context.lanes.remove(lane)

    def served(self, lane: Lane) -> None:
        """Rows of it were let in: the others' turns come first now."""
        context = lane.context
        self._contexts[context.key] = self._contexts.pop(context.key)
        if lane.groups:
            context.lanes.remove(lane)
            context.lanes.append(lane)

    def contexts(self) -> list[tuple[Context, int]]:
        """Those with waiting rows, in turn, and how many of their rows run."""
        if not self._contexts:
            return []
        self._running = self._count()
        running: Counter[int] = Counter()
        for (queue, _), rows in self._running.items():
            running[queue] += rows
        for context in [c for c in self._contexts.values() if not c.lanes]:
            if not running[context.number]:
                del self._contexts[context.key]
        return [(c, running[c.number]) for c in self._contexts.values() if c.lanes]

    def lanes(self, context: Context, most: int) -> list[tuple[Lane, int]]:
        """The `most` jobs of a context whose turn comes next and how many of their rows ran on it
        when `contexts` was called."""
        some = islice(context.lanes, most)
        return [(lane, self._running[context.number, lane.job.number]) for lane in some]

    def check(self) -> None:
        """Verify that every waiting group is queued once. Raises AssertionError."""
        queued = [g for c in self._contexts.values() for lane in c.lanes for g in lane.groups]
        assert len(queued) == len(self._lanes) and set(queued) == set(self._lanes)
        assert all(len(group.rows) for group in queued), "a group without rows waits"

    def _count(self) -> Counter[tuple[int, int]]:
        """(queue, job) -> rows that run."""
        live = np.flatnonzero(self._seqs.state != FREE)
        queue, job = self._seqs.queue[live], self._seqs.job[live]
        width = int(job.max(initial=0)) + 1
        pairs = counted(queue * width + job)
        return Counter({divmod(pair, width): rows for pair, rows in pairs})

    def _context(self, key: bytes) -> Context:
        if key not in self._contexts:
            self._number += 1
            self._contexts[key] = Context(key, self._number)
        return self._contexts[key]


def even(free: int, running: Sequence[int], waiting: Sequence[int]) -> list[int]:
    """How many rows of each to let in, of `waiting`, where so many are `running` and `free` slots
    are left: so that as far as possible nobody runs more than another who still has rows waiting.
    What cannot be divided goes to the first ones."""
    if len(waiting) < 2:
        return [min(free, n) for n in waiting]
    runs, waits = np.array(running, np.int64), np.array(waiting, np.int64)
    low, high = 0, int(runs.max(initial=0)) + free
    while low < high:  # the highest level up to which all can be filled
        level = (low + high + 1) // 2
        fits = int(np.clip(level - runs, 0, waits).sum()) <= free
        low, high = (level, high) if fits else (low, level - 1)
    shares = np.clip(low - runs, 0, waits)
    more = np.flatnonzero((shares < waits) & (runs + shares == low))
    shares[more[: free - int(shares.sum())]] += 1
    out: list[int] = shares.tolist()
    return out


def portions(room: int, pending: Int64Array, extra: Int64Array | int, fresh: bool) -> Int64Array:
    """How many of each row's pending tokens go into a step that has `room` for more, earlier rows
    first. A row's last token brings `extra` label nodes with it: where they do not fit, it stays
    for another step, unless it is all that is left of the first row of a `fresh` step (one that
    reads nothing else): there will never be more room for it."""
    cost = pending + extra
    left = room - (np.cumsum(cost) - cost)
    counts = np.clip(left, 0, pending)
    late = (counts == pending) & (left < cost)
    if fresh and len(pending) and pending[0] == 1:
        late[0] = False
    taken: Int64Array = counts - late
    return taken
