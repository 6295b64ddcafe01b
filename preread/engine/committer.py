"""What a finished step means: tokens appended, rows ended, news written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from preread.engine.admission import Admission
from preread.engine.branch import Branches
from preread.engine.jobs import Job
from preread.engine.ledger import Ledger
from preread.engine.sampler import Outcome
from preread.engine.sequence import FREE, Sequences
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
from preread.tokens.ragged import counted, distinct

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Float32Array, Int32Array, Int64Array


class Committer:
    """Ends rows and tells of it. keep: moves the KV of a slot that ended well to the tree, if its
    request says so, before the slot is freed."""

    def __init__(
        self,
        seqs: Sequences,
        branches: Branches,
        admission: Admission,
        ledger: Ledger,
        keep: Callable[[int], None],
    ) -> None:
        self._seqs = seqs
        self._branches = branches
        self._admission = admission
        self._ledger = ledger
        self._keep = keep

    def commit(self, step: Step, outcome: Outcome) -> None:
        seqs, score = self._seqs, step.score
        seqs.computed[step.slots] += step.counts
        seqs.scores[score.slots, score.at] = outcome.scores
        np.logical_and.at(seqs.agree, score.slots, outcome.agree)
        slots, tokens = step.sample_slots, outcome.tokens
        codes = np.where(outcome.broken, ERROR, self._end_tokens(slots, tokens)).astype(np.int8)
        wrote = codes == GOES_ON
        seqs.append(slots[wrote], tokens[wrote])
        codes[wrote] = self._after(slots[wrote], tokens[wrote])
        read = step.slots[
            (seqs.kind[step.slots] != Kind.GENERATE)
            & (seqs.computed[step.slots] == seqs.known[step.slots])
        ]
        self._report(
            np.concatenate((slots, read)),
            np.concatenate((np.where(wrote, tokens, -1), np.full(len(read), -1))).astype(np.int32),
            np.concatenate((outcome.logprobs, np.zeros(len(read), np.float32))),
            np.concatenate((codes, self._scored(read))),
        )

    def end(self, slots: Int64Array, codes: NDArray[np.int8]) -> None:
        """Free the rows' slots, pages and places on the tree."""
        seqs = self._seqs
        well = (codes == STOP) | (codes == LENGTH)
        for slot in slots[well & seqs.keep[slots]].tolist():
            self._keep(slot)
        for branch, rows in counted(seqs.branch[slots]):
            self._branches.close(branch, rows)
        seqs.close(slots[well])
        seqs.close(slots[~well], scrub=True)
        for job, rows in counted(seqs.job[slots]):
            self.close(self._admission.jobs[job], rows)

    def close(self, job: Job, rows: int) -> None:
        """So many rows of a job have ended."""
        job.open_rows -= rows
        if not job.open_rows:
            del self._admission.jobs[job.number]

    def fail(self, slot: int, message: str) -> None:
        """End a running row with an error."""
        seqs, one = self._seqs, np.array([slot])
        self._ledger.fail(int(seqs.job[slot]), seqs.row[one], message, self._usage(one))
        self.end(one, _all(one, ERROR))

    def cancel(self, job: int, rows: Int64Array | None) -> None:
        """End running rows (None: all) of a job that nobody wants any more."""
        if len(slots := self._slots_of(job, rows)):
            self._ledger.cancel(job, self._seqs.row[slots], self._usage(slots))
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
        codes = np.where(seqs.done[slots] >= seqs.max_new[slots], LENGTH, GOES_ON).astype(np.int8)
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

    def _report(
        self, slots: Int64Array, tokens: Int32Array, logprobs: Float32Array, codes: NDArray[np.int8]
    ) -> None:
        seqs = self._seqs
        for number in distinct(seqs.job[slots]):
            mine = seqs.job[slots] == number
            own, rows = slots[mine], seqs.row[slots[mine]]
            errors = {
                int(seqs.row[slot]): self._why(slot) for slot in own[codes[mine] == ERROR].tolist()
            }
            news = News(
                rows=rows.astype(np.int32),
                tokens=tokens[mine],
                logprobs=logprobs[mine],
                finish=codes[mine],
                usage=self._usage(own),
                scores=self._scores(number, own),
                agree=seqs.agree[own],
                errors=errors,
            )
            self._ledger.put(number, news)
        ended = codes != GOES_ON
        if ended.any():
            self.end(slots[ended], codes[ended])

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
        columns = (seqs.context[slots], seqs.base[slots] - paid, asked + paid, seqs.done[slots])
        return np.stack(columns, axis=1).astype(np.int32)

    def _scores(self, number: int, slots: Int64Array) -> Float32Array:
        spec = self._admission.jobs[number].batch.spec
        if isinstance(spec, GenerateSpec):
            return np.zeros((len(slots), 0), np.float32)
        scores = self._seqs.scores[slots, : int(self._widths(slots).max(initial=0))]
        return spec.trie.score(scores) if isinstance(spec, ChooseSpec) else scores


def _all(slots: Int64Array, code: int) -> NDArray[np.int8]:
    return np.full(len(slots), code, np.int8)
