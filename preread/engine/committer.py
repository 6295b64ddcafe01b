"""What a finished step means: tokens appended, rows ended, news written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from preread.backend import Ragged
from preread.engine.admission import Admission
from preread.engine.branch import Branches
from preread.engine.jobs import Job
from preread.engine.ledger import Ledger
from preread.engine.sampler import Outcome
from preread.engine.sequence import ENDING, FREE, Sequences
from preread.engine.step import Step
from preread.tokens.batch import (
    CANCELLED,
    ERROR,
    GOES_ON,
    LENGTH,
    NOT_FINITE,
    STOP,
    ChooseSpec,
    GenerateSpec,
    Kind,
    News,
)
from preread.tokens.ragged import counted, distinct, ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Float32Array, Int32Array, Int64Array


@dataclass(frozen=True, slots=True)
class Promise:
    """A step that was launched. Of its slots, born: whose they were; read: whether with it a row
    that only reads is read to its end."""

    step: Step
    born: Int64Array
    read: NDArray[np.bool_]


class Committer:
    """Ends rows and tells of it. keep: moves the KV of a slot that ended well to the tree, if its
    request says so, before the slot is freed."""

    def __init__(
        self, seqs: Sequences, branches: Branches, admission: Admission, ledger: Ledger,
        keep: Callable[[int], None], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._seqs = seqs
        self._branches = branches
        self._admission = admission
        self._ledger = ledger
        self._keep = keep
        self._clock = clock

    def advance(self, step: Step) -> Promise:
        """A step was launched: what is certain of it before it says anything. Rows go on as if
        none met the end of its answer, and the next step may be scheduled."""
        seqs, slots = self._seqs, step.slots
        seqs.computed[slots] += step.counts
        seqs.promise(step.sample_slots)
        writes = seqs.kind[slots] == Kind.GENERATE
        read = ~writes & (seqs.computed[slots] == seqs.known[slots])
        seqs.state[slots[read | (writes & (seqs.done[slots] >= seqs.max_new[slots]))]] = ENDING
        return Promise(step, seqs.born[slots], read)

    def settle(self, promise: Promise, outcome: Outcome) -> None:
        """What a step said. Rows that ended since it was launched have no part in it."""
        seqs, step = self._seqs, promise.step
        same = (seqs.state[step.slots] != FREE) & (seqs.born[step.slots] == promise.born)
        live = np.zeros(len(seqs), bool)
        live[step.slots] = same
        if len(step.score.slots):
            self._score(step, outcome, live)
        here = live[step.sample_slots]
        slots, tokens = step.sample_slots[here], outcome.tokens[here]
        codes = np.where(outcome.broken[here], ERROR, self._end_tokens(slots, tokens))
        wrote = codes == GOES_ON
        seqs.write(slots[wrote], tokens[wrote], outcome.logprobs[here][wrote], self._clock())
        seqs.retract(slots[~wrote])  # what a step under way adds is nobody's
        codes[wrote] = self._after(slots[wrote], tokens[wrote])
        read = step.slots[same & promise.read]
        codes = np.concatenate((codes.astype(np.int8), self._scored(read)))
        self._tell(np.concatenate((slots, read)), codes)

    def _score(self, step: Step, outcome: Outcome, live: NDArray[np.bool_]) -> None:
        seqs, here = self._seqs, live[step.score.slots]
        slots = step.score.slots[here]
        seqs.scores[slots, step.score.at[here]] = outcome.scores[here]
        np.logical_and.at(seqs.agree, slots, outcome.agree[here])

    def end(self, slots: Int64Array, codes: NDArray[np.int8]) -> None:
        """Free the rows' slots, pages and places on the tree."""
        seqs = self._seqs
        well = (codes == STOP) | (codes == LENGTH)
        for slot in slots[well & seqs.keep[slots]].tolist():
            self._keep(slot)
        for branch, rows in counted(seqs.branch[slots]):
            self._branches.close(branch, rows)
        clean = well & ~seqs.unseen(slots)
        seqs.close(slots[clean])
        seqs.close(slots[~clean], scrub=True)
        for job, rows in counted(seqs.job[slots]):
            self.close(self._admission.jobs[job], rows)

    def close(self, job: Job, rows: int) -> None:
        """So many rows of a job have ended."""
        job.open_rows -= rows
        if not job.open_rows:
            del self._admission.jobs[job.number]

    def fail(self, slots: Int64Array, message: str) -> None:
        """End running rows with an error."""
        self._tell(slots, _all(slots, ERROR), message)

    def cancel(self, job: int, rows: Int64Array | None) -> None:
        """End running rows (None: all) of a job that nobody wants any more."""
        slots = self._slots_of(job, rows)
        self._tell(slots, _all(slots, CANCELLED))

    def drop(self, job: int) -> None:
        """End running rows of which nobody has heard, without news."""
        slots = self._slots_of(job, None)
        self.end(slots, _all(slots, CANCELLED))

    def finish(self, job: int, rows: Int64Array) -> None:
        """End running rows well, without news: their reader has seen what it wants."""
        if len(slots := self._slots_of(job, rows)):
            self.end(slots, _all(slots, STOP))

    def _slots_of(self, job: int, rows: Int64Array | None) -> Int64Array:
        seqs = self._seqs
        mine = (seqs.state != FREE) & (seqs.job == job)
        return np.flatnonzero(mine if rows is None else mine & np.isin(seqs.row, rows))

    def _end_tokens(self, slots: Int64Array, tokens: Int32Array) -> NDArray[np.int8]:
        """STOP where a row's model says that the answer ends; that token is no output."""
        codes = np.full(len(slots), GOES_ON, np.int8)
        for number in distinct(self._seqs.job[slots]):
            spec = self._admission.jobs[number].batch.spec
            if isinstance(spec, GenerateSpec) and spec.eos:
                codes[(self._seqs.job[slots] == number) & np.isin(tokens, spec.eos)] = STOP
        return codes

    def _after(self, slots: Int64Array, tokens: Int32Array) -> NDArray[np.int8]:
        """Whether rows end with the token they just wrote: by length, or a complete grammar."""
        seqs = self._seqs
        full = seqs.written[slots] >= seqs.max_new[slots]
        codes = np.where(full, LENGTH, GOES_ON).astype(np.int8)
        bound = seqs.matchers and [
            (i, s) for i, s in enumerate(slots.tolist()) if s in seqs.matchers
        ]
        for i, slot in bound or ():
            if seqs.matchers[slot].accept(int(tokens[i])):
                codes[i] = ERROR if seqs.matchers[slot].error else STOP
        return codes

    def _scored(self, slots: Int64Array) -> NDArray[np.int8]:
        """Scores are not finite only if the model is broken; -inf is a probability of 0."""
        if not len(slots):
            return np.empty(0, np.int8)
        used = np.arange(self._seqs.scores.shape[1]) < self._widths(slots)[:, None]
        broken = (np.isnan(self._seqs.scores[slots]) & used).any(1)
        return np.where(broken, ERROR, STOP).astype(np.int8)

    def _widths(self, slots: Int64Array) -> Int64Array:
        seqs, widths = self._seqs, np.zeros(len(slots), np.int64)
        for number in distinct(seqs.job[slots]):
            mine, spec = seqs.job[slots] == number, self._admission.jobs[number].batch.spec
            if isinstance(spec, ChooseSpec):
                widths[mine] = len(spec.trie.edge_node)
            elif not isinstance(spec, GenerateSpec):
                widths[mine] = spec.counts[seqs.row[slots[mine]]]
        return widths

    def _tell(self, slots: Int64Array, codes: NDArray[np.int8], message: str = "") -> None:
        """News of rows, except of those that go on and whose reader waits for the end. Then free
        those that ended. message: why, for errors."""
        seqs, now = self._seqs, self._clock()
        for number in distinct(seqs.job[slots]):
            job = self._admission.jobs[number]
            mine = (seqs.job[slots] == number) & (job.streams | (codes != GOES_ON))
            if mine.any():
                news = self._news(job, slots[mine], codes[mine], message, now)
                self._ledger.put(number, news)
        ended = codes != GOES_ON
        if ended.any():
            self.end(slots[ended], codes[ended])

    def _news(
        self, job: Job, slots: Int64Array, codes: NDArray[np.int8], message: str, now: float
    ) -> News:
        seqs = self._seqs
        rows, bad = seqs.row[slots].astype(np.int32), np.flatnonzero(codes == ERROR).tolist()
        told = seqs.told[slots]
        new = seqs.written[slots] - told
        own = slots * seqs.tokens.shape[1] + seqs.prompt[slots] + told
        logprobs = np.zeros(int(new.sum()), np.float32)
        if isinstance(job.batch.spec, GenerateSpec) and job.batch.spec.logprobs:
            logprobs = seqs.scores.reshape(-1)[ranges(slots * seqs.scores.shape[1] + told, new)]
        seqs.told[slots] += new
        return News(
            rows=rows,
            tokens=Ragged(
                seqs.tokens.reshape(-1)[ranges(own, new)], np.concatenate(([0], np.cumsum(new)))
            ),
            logprobs=logprobs,
            finish=codes,
            usage=self._usage(slots),
            age=np.where(seqs.written[slots] > 0, now - seqs.first[slots], 0.0).astype(np.float32),
            scores=self._scores(job, slots, codes),
            agree=seqs.agree[slots],
            errors={int(rows[i]): message or self._why(int(slots[i])) for i in bad},
        )

    def _why(self, slot: int) -> str:
        matcher = self._seqs.matchers.get(slot)
        return (matcher and f"schema: {matcher.error}") or NOT_FINITE

    def _usage(self, slots: Int64Array) -> Int32Array:
        seqs = self._seqs
        scored = seqs.kind[slots] == Kind.LIKELIHOOD  # its last token is only a target
        whole = seqs.computed[slots] >= np.where(scored, seqs.known[slots], seqs.prompt[slots])
        asked = np.where(scored, seqs.known[slots] + 1, seqs.prompt[slots])
        asked = np.where(whole, asked, seqs.computed[slots])  # of a row that was cut short
        paid = seqs.paid[slots]
        columns = (seqs.context[slots], seqs.base[slots] - paid, asked + paid, seqs.written[slots])
        return np.stack(columns, axis=1).astype(np.int32)

    def _scores(self, job: Job, slots: Int64Array, codes: NDArray[np.int8]) -> Float32Array:
        """Nothing if no row was read to its end."""
        spec = job.batch.spec
        if isinstance(spec, GenerateSpec) or not (codes == STOP).any():
            return np.zeros((len(slots), 0), np.float32)
        scores = self._seqs.scores[slots, : int(self._widths(slots).max(initial=0))]
        return spec.trie.score(scores) if isinstance(spec, ChooseSpec) else scores


def _all(slots: Int64Array, code: int) -> NDArray[np.int8]:
    return np.full(len(slots), code, np.int8)
