"""Prefixes that have a place on the tree and are being read: which tokens are missing, a chunk at a
time, and on whose account they are computed.

Whoever wants a prefix (an explicit build, a group of rows) has a `Reading` of it, which first waits
in line for its place (line.py). Work is found by looking at the tree, so that a stretch wanted by
many is computed once, and nothing has to be told when a segment splits or when a tier delivers part
of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from preread.engine.arena import Run
from preread.engine.meeting import Meeting
from preread.engine.notices import Notice, Notices, Told
from preread.engine.prefix import PrefixTree, fork
from preread.engine.segment import Segment, Stretch
from preread.engine.step import Chunk

if TYPE_CHECKING:
    from preread.types import Int32Array


@dataclass(slots=True, eq=False)
class Reading:
    """A prefix that somebody wants, until released. told: called when it has its place and, while
    active, after every step, from the engine thread; it must not block. linked: others may find
    what is read. outside: no waiting group has it, so it is released whatever the engine does.
    active: missing tokens are to be computed now. stores: its owner saves what is computed on its
    account. error: why it cannot be read.

    waited: steps at the head of the line. leaf: its place on the tree, None while it waits for one.
    Then, cached: tokens that were ready at once; runs: where they all lie (fixed while held); due:
    something had to be read and its rows have not run yet, so that giving it up would be waste;
    spent: what was computed on its account; settled: which is no more its own, but its owner's;
    meeting: while it is computed and loaded at once; promised: each layer of it will be there when
    the step that is being made comes to it.
    """

    tokens: Int32Array
    told: Told | None = None
    linked: bool = True
    outside: bool = True
    active: bool = False
    stores: bool = False
    error: Exception | None = None
    waited: int = 0
    leaf: Segment | None = None
    cached: int = 0
    runs: list[Run] = field(default_factory=list)
    due: bool = False
    spent: list[Stretch] = field(default_factory=list)
    settled: bool = False
    meeting: Meeting | None = None
    promised: bool = False

    @property
    def upto(self) -> int:
        return len(self.tokens)

    @property
    def placed(self) -> bool:
        return self.leaf is not None

    def fail(self, error: Exception) -> None:
        """Nobody need wait for it any longer."""
        self.error = error
        if self.meeting is not None:
            self.meeting.quit()
        if self.told is not None:
            self.told(0, self.upto, 0)


class Readings:
    """All readings that have their place. The engine thread alone calls these."""

    def __init__(self, tree: PrefixTree, chunk: int) -> None:
        self._tree = tree
        self._chunk = chunk
        self._all: list[Reading] = []
        self._notices = Notices()

    @property
    def outside(self) -> bool:
        """Somebody outside holds a prefix, so memory may still become free."""
        return any(r.outside for r in self._all)

    @property
    def busy(self) -> bool:
        """Tokens are to be computed."""
        return any(r.active and r.error is None and not self.done(r) for r in self._all)

    def place(self, reading: Reading, now: float) -> bool:
        """Give it a place on the tree, for which others make room; False while there is no memory
        for it."""
        leaf = self._tree.insert(reading.tokens, now, linked=reading.linked)
        if leaf is None:
            return False
        self._tree.pin(leaf)
        reading.leaf = leaf
        reading.cached = self.ready(reading)
        reading.runs = self._tree.runs(leaf, 0, reading.upto)
        reading.due = reading.cached < reading.upto
        self._all.append(reading)
        self._tell(reading)
        return True

    def release(self, reading: Reading, now: float) -> None:
        """Let go of its place; what was computed for nobody else passes to who still waits."""
        assert reading.leaf is not None
        self._all.remove(reading)
        if not reading.settled:
            self._pass_on(reading)
        self._tree.unpin(reading.leaf, now)

    def ready(self, reading: Reading) -> int:
        assert reading.leaf is not None
        return self._tree.ready(reading.leaf, reading.upto)

    def done(self, reading: Reading) -> bool:
        """Whether it has its place and every token is ready, or promised."""
        return reading.placed and (reading.promised or self.ready(reading) == reading.upto)

    def read(self, reading: Reading) -> None:
        """Compute what is missing in the coming steps; it is told at once and after each."""
        reading.active = True
        self._tell(reading)

    def settle(self, reading: Reading) -> int:
        """How many tokens were computed on its account; from now on they are the caller's."""
        spent, reading.spent, reading.settled = reading.spent, [], True
        return sum(end - start for start, end in spent)

    def loading(self, reading: Reading, on: bool) -> None:
        """While on, the missing tokens come from a tier and are not computed. What lay ahead comes
        again: its places may be written before it is known what comes."""
        assert reading.leaf is not None
        # Off: also what was split off behind its end meanwhile, which nobody else would free.
        for segment in self._path(reading) if on else self._tree.path(reading.leaf):
            segment.loading = on and not segment.complete
            if on:
                segment.ahead.clear()

    def loaded(self, reading: Reading, upto: int) -> None:
        """A tier has delivered the first `upto` tokens."""
        assert reading.leaf is not None
        self._tree.advance(reading.leaf, upto)
        self.loading(reading, False)
        self._tell_active()

    def meet(self, reading: Reading, meeting: Meeting) -> int:
        """From now on a tier gives its tokens up to `meeting.upto` from their end, while they are
        computed from their front. Returns how many are ready; all of them: there is no meeting."""
        if (ready := self.ready(reading)) < meeting.upto:
            meeting.open(ready)
            self._fill(reading, meeting)
            self.read(reading)
        return ready

    def met(self, reading: Reading) -> None:
        """Nothing more is given. What is still missing is computed when somebody wants it."""
        self.fetch()
        self._fill(reading, None)
        reading.active = False
        self._tell_active()

    def fetch(self) -> None:
        """What tiers have given takes its place."""
        for reading in self._all:
            came = reading.meeting.fetch() if reading.meeting is not None else ()
            for lo, hi in came:
                assert reading.leaf is not None
                self._tree.deliver(reading.leaf, lo, hi)
            if came:
                self._tell_active()

    @property
    def wait_s(self) -> float | None:
        """After how many seconds something may be computed that a tier does not give; None: nothing
        is waited for."""
        waits = (r.meeting.wait_s() for r in self._all if r.meeting is not None)
        return min((wait for wait in waits if wait is not None), default=None)

    def chunks(self, budget: int) -> list[Chunk]:
        """The next tokens to compute, at most `budget`, each missing segment once, no further than
        it is wanted, and nothing that a tier gives."""
        wanted: dict[Segment, int] = {}
        for reading in self._all:
            segment = self._next(reading)
            if segment is not None and (segment.meeting or not segment.loading):
                end = min(segment.stop, reading.upto)
                wanted[segment] = max(wanted.get(segment, 0), end)
        out: list[Chunk] = []
        for segment, end in wanted.items():
            base = segment.start + segment.ready
            n = min(self._chunk, budget, end - base)
            if segment.meeting is not None and n > 0:
                n = segment.meeting.take(base, n)
                if segment.meeting.resumed():
                    self._tell_active()  # what it waited is not what computing takes
            if n <= 0:
                continue
            tokens = segment.tokens[segment.ready : segment.ready + n]
            before, here = ((0, base), (base, base + n))
            path_runs, runs = (tuple(self._tree.runs(segment, *x)) for x in (before, here))
            out.append(Chunk(segment, base, tokens, path_runs, runs))
            budget -= n
        return out

    def commit(self, chunks: Sequence[Chunk]) -> list[Notice]:
        """The chunks are being computed, before anything that is launched from now on: note on
        whose account, and tell the tree. Returns what is to be told when they are computed."""
        for chunk in chunks:
            at, end = chunk.base, chunk.base + len(chunk.tokens)
            for reading in self._payers():
                upto = min(end, reading.upto)
                if reading.active and at < upto and chunk.leaf in self._path(reading):
                    reading.spent.append((at, upto))
                    at = upto
            self._tree.advance(chunk.leaf, end)
        return self._notices.launched(self._of_active())

    def computed(self, notices: list[Notice]) -> None:
        """What `commit` has returned is so now."""
        self._notices.computed(notices)

    def fail(self, chunks: Sequence[Chunk], error: Exception) -> None:
        """These chunks cannot be computed: nobody who needs them waits any longer. Who needs the
        beginning of one alone goes on: the next is cut where they end."""
        for chunk in chunks:
            for reading in self._all:
                whole = reading.upto >= chunk.base + len(chunk.tokens)
                if reading.active and whole and chunk.leaf in self._path(reading):
                    reading.fail(error)

    def end(self, error: Exception) -> None:
        """Nothing will be read any more."""
        for reading in self._all:
            reading.fail(error)

    def _fill(self, reading: Reading, meeting: Meeting | None) -> None:
        assert reading.leaf is not None
        reading.meeting = meeting
        self.loading(reading, meeting is not None)
        for segment in self._tree.path(reading.leaf):
            segment.meeting = meeting if segment.loading else None

    def _path(self, reading: Reading) -> list[Segment]:
        assert reading.leaf is not None
        return self._tree.path(reading.leaf, reading.upto)

    def _next(self, reading: Reading) -> Segment | None:
        """The segment in which the next token to compute lies."""
        if not reading.active or reading.error is not None:
            return None
        missing = (s for s in self._path(reading) if not s.complete)
        segment = next(missing, None)
        reached = segment is None or segment.start + segment.ready >= reading.upto
        return None if reached else segment

    def _payers(self) -> list[Reading]:
        """Those that may be charged: who stores what it pays for first, then who came first."""
        open_ = (r for r in self._all if r.error is None and not r.settled)
        return sorted(open_, key=lambda r: not r.stores)

    def _pass_on(self, reading: Reading) -> None:
        """Somebody has to pay for what was computed for a reading that is given up: who waits for
        the same tokens and did not find them when it came."""
        left = reading.spent
        for heir in self._payers():
            shared = fork(self._path(reading), self._path(heir))
            lo, hi = heir.cached, min(shared, reading.upto, heir.upto)
            heir.spent += [s for a, b in left if (s := (max(a, lo), min(b, hi)))[0] < s[1]]
            parts = [part for a, b in left for part in ((a, min(b, lo)), (max(a, hi), b))]
            left = [(a, b) for a, b in parts if a < b] if lo < hi else left

    def _tell(self, reading: Reading) -> None:
        self._notice(reading).give()

    def _notice(self, reading: Reading) -> Notice:
        spent = sum(end - start for start, end in reading.spent)
        return Notice(reading, self.ready(reading), spent)

    def _tell_active(self) -> None:
        self._notices.tell(self._of_active())

    def _of_active(self) -> list[Notice]:
        return [self._notice(reading) for reading in self._all if reading.active]
