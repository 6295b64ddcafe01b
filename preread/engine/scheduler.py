"""Who takes part in the next step: decode first, then rows half read, newcomers, prefixes.

Memory decides: a row is admitted when its pages are there, the youngest is preempted (computed
again later) when they run out, and after a failure fewer rows run at once. Rows are columns; there
is no loop over tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from preread.config import EngineSection
from preread.engine.admission import Admission
from preread.engine.branch import Branches
from preread.engine.gathering import Gathers
from preread.engine.line import Line
from preread.engine.pack import Packer
from preread.engine.pages import Pages
from preread.engine.prefix import PrefixTree
from preread.engine.reading import Readings
from preread.engine.sequence import RUNNING, Sequences
from preread.engine.step import Step
from preread.engine.turns import portions
from preread.metrics import Metrics
from preread.tokens.batch import ChooseSpec, Kind
from preread.tokens.labels import LabelTrie
from preread.tokens.ragged import distinct

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Int64Array

GOOD_STEPS = 64  # after so many in a row, limits lowered by a failure are doubled
LEAST_TOKENS = 16  # a step is never made smaller than this


class Scheduler:
    """limit: rows that may run at once; budget: most tokens of a step. Both fall when a step fails
    and rise again."""

    def __init__(
        self, config: EngineSection, tree: PrefixTree, pages: Pages, metrics: Metrics,
        clock: Callable[[], float], gathers: Gathers, *, slots: int, land: Callable[[], bool],
    ) -> None:  # fmt: skip
        """gathers: see Packer. slots: rows that run, or end while others run already. land: settle
        the step in flight; False if there is none."""
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._pages = pages
        self.seqs = Sequences(slots, pages)
        self._land = land
        self.branches = Branches(tree, clock)
        self.readings = Readings(tree, config.prefill_chunk)
        self.line = Line(tree, self.readings)
        self.admission = Admission(tree, self.readings, self.line, self.seqs, self.branches, pages)
        self._packer = Packer(
            self.seqs, self.branches, page_tokens=config.page_tokens, gathers=gathers
        )
        self.limit = config.max_sequences
        self.budget = config.batch_tokens
        self._good = 0

    def schedule(self) -> Step | None:
        """The next step, None if nothing can run now. Takes the pages it needs."""
        seqs, now = self.seqs, self._clock()
        self._resume()
        self.readings.fetch()
        self.admission.make_way(now)
        self.line.grant(now)
        if not len(seqs.parked):
            self.admission.look(self.limit, self.budget, now)
        reserve = sum(len(chunk.tokens) for chunk in self.readings.chunks(self.budget // 2))
        slots, counts = self._secure(*self._turns(seqs.running[: self.limit], reserve))
        left = self.budget - self._cost(slots, counts)
        if not len(seqs.parked):
            fresh = bool(self._decodes(slots).all())
            came = self.admission.admit(left - reserve, self.limit, fresh, now)
            slots = np.concatenate((slots, came.slots))
            counts = np.concatenate((counts, came.counts))
            left -= self.admission.spent
        alone = self.limit == 1 and len(slots)  # after failures, to find the culprit
        chunks = [] if alone else self.readings.chunks(max(left, reserve))
        if self.budget <= LEAST_TOKENS:
            chunks = chunks[:1]
        if not len(slots) and not chunks:
            return None
        self.line.age()
        return self._packer.pack(slots, counts, chunks, self._tries(slots))

    @property
    def stuck(self) -> bool:
        """Nothing runs and nothing outside will free memory, yet a prefix waits for some."""
        return self.line.head is not None and not (self.seqs.state.any() or self.readings.outside)

    @property
    def alone(self) -> bool:
        """Whether whoever came now would have the engine for itself."""
        return not (
            self.admission.jobs or self.seqs.state.any() or self.readings.busy or self.line.head
        )

    def good(self) -> None:
        """A step succeeded."""
        self._good += 1
        if self._good % GOOD_STEPS == 0:
            self.limit = min(2 * self.limit, self._config.max_sequences)
            self.budget = min(2 * self.budget, self._config.batch_tokens)

    def lower(self, step: Step) -> bool:
        """A step failed: make the next one smaller. False when it cannot be: one row, or one small
        chunk, failed alone."""
        self._good = 0
        rows, tokens = len(step.slots), len(step.tokens)
        smaller = False
        if tokens > LEAST_TOKENS and self.budget > LEAST_TOKENS:
            self.budget = max(LEAST_TOKENS, min(self.budget, tokens) // 2)
            smaller = tokens > rows  # one token of one row cannot be halved
        if rows > 1 or (rows == 1 and len(step.chunks)):
            self.limit, smaller = max(1, rows // 2), True
            for slot in self.seqs.running[self.limit :].tolist():
                self.park(slot)
        if not smaller and len(step.chunks) > 1:  # small ones: now one by one
            self.budget, smaller = min(self.budget, LEAST_TOKENS), True
        self._metrics.add("engine.steps_lowered", smaller)
        return smaller

    def park(self, slot: int) -> None:
        self.seqs.park(slot)
        self._metrics.add("engine.preempted")

    def _resume(self) -> None:
        """Preempted rows come back, oldest first, when all of their tokens fit. Nobody else comes
        in before them."""
        seqs = self.seqs
        running = int((seqs.state == RUNNING).sum())
        for slot in seqs.parked.tolist():
            need = -(-int(seqs.known[slot]) // self._pages.page_tokens)
            if running >= self.limit or need + running > self._pages.free:
                return
            seqs.state[slot] = RUNNING
            running += 1

    def _decodes(self, slots: Int64Array) -> NDArray[np.bool_]:
        """Which rows are read and have one token to go on with."""
        seqs = self.seqs
        begun = (seqs.computed[slots] > 0) & (seqs.kind[slots] == Kind.GENERATE)
        decodes: NDArray[np.bool_] = begun & (seqs.known[slots] - seqs.computed[slots] == 1)
        return decodes

    def _cost(self, slots: Int64Array, counts: Int64Array) -> int:
        """Rows of a step that these sequences take."""
        seqs = self.seqs
        ends = seqs.computed[slots] + counts == seqs.known[slots]
        return int(counts.sum() + (seqs.extra[slots] * ends).sum())

    def _turns(self, slots: Int64Array, reserve: int) -> tuple[Int64Array, Int64Array]:
        """Decoding rows first, one token each; then rows half read, oldest first, in what is left
        of the budget when `reserve` is kept for prefixes."""
        seqs = self.seqs
        decodes = self._decodes(slots)
        slots, read = slots[decodes], slots[~decodes]
        room = self.budget - reserve - len(slots)
        pending = seqs.known[read] - seqs.computed[read]
        counts = portions(room, pending, seqs.extra[read], fresh=True)
        slots = np.concatenate((slots, read[counts > 0]))
        return slots, np.concatenate((np.ones(int(decodes.sum()), np.int64), counts[counts > 0]))

    def _secure(self, slots: Int64Array, counts: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Take pages for the next tokens; the youngest rows give theirs up until they suffice, when
        what they wrote last is known."""
        seqs, need = self.seqs, self.seqs.pages_needed(slots, counts)
        while int(need.sum()) > self._pages.free:
            if self._land():
                stay = seqs.state[slots] == RUNNING
                slots, counts, need = slots[stay], counts[stay], need[stay]
                continue
            victim = int(seqs.running[-1])
            self.park(victim)
            stay = slots != victim
            slots, counts, need = slots[stay], counts[stay], need[stay]
        seqs.grow(slots, need)
        return slots, counts

    def _tries(self, slots: Int64Array) -> dict[int, LabelTrie]:
        """Label tries of the choose jobs that take part."""
        seqs = self.seqs
        choose = seqs.kind[slots] == Kind.CHOOSE
        tries = {}
        for number in distinct(seqs.job[slots[choose]]):
            spec = self.admission.jobs[number].batch.spec
            assert isinstance(spec, ChooseSpec)
            tries[number] = spec.trie
        return tries

    def check(self) -> None:
        self.seqs.check()
        self.admission.check()
        assert self.budget >= 1 and self.limit >= 1
