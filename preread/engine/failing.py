"""What becomes of rows and prefixes when a step fails, or when nothing can run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import torch

from preread.engine.committer import Committer
from preread.engine.ledger import Ledger
from preread.engine.misfits import MORE_PREFIX
from preread.engine.plan import MemoryPlan
from preread.engine.reading import Reading
from preread.engine.scheduler import Scheduler
from preread.engine.sequence import FREE
from preread.engine.step import Step
from preread.errors import OutOfMemory

log = logging.getLogger("preread.engine")


class Failing:
    """Ends what cannot go on, and nothing else: one row's failure must not be everybody's."""

    def __init__(
        self, scheduler: Scheduler, committer: Committer, ledger: Ledger, plan: MemoryPlan,
        device: torch.device, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._scheduler = scheduler
        self._seqs = scheduler.seqs
        self._admission, self._line = scheduler.admission, scheduler.line
        self._readings = scheduler.readings
        self._committer = committer
        self._ledger = ledger
        self._plan = plan
        self._cuda = device.type == "cuda"
        self._clock = clock

    def failed(self, step: Step, error: Exception) -> None:
        """Go on with a smaller step; what fails alone and small, fails."""
        short = is_out_of_memory(error)
        log.warning("a step of %d tokens failed: %s", len(step.tokens), error, exc_info=not short)
        if short and self._cuda:
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
        if self._scheduler.lower(step):
            return
        message = f"Out of memory even alone. {self._plan.describe()}" if short else repr(error)
        # Some may have ended with the step before, which was settled after this one was made.
        self._committer.fail(step.slots[self._seqs.state[step.slots] != FREE], message)
        lost = OutOfMemory(message, hint=MORE_PREFIX) if short else error
        self._readings.fail(step.chunks, lost)
        self._fail_groups(lambda reading: reading.error is lost, message)

    def unblock(self) -> bool:
        """Nothing can run. If nothing will change that either, what waits for memory cannot fit."""
        head = self._line.head
        if head is None or not self._scheduler.stuck:
            return False
        lost = too_large(head.upto, self._plan)
        self._fail_groups(lambda reading: reading is head, str(lost))
        if self._line.head is head:  # nobody's group: a build
            self._line.leave(head, self._clock())
            head.fail(lost)
        return True

    def _fail_groups(self, lost: Callable[[Reading], bool], message: str) -> None:
        for group in self._admission.wanting(lost):
            rows = self._admission.remove(group.job, group.rows, self._clock())
            self._ledger.fail(group.job.number, rows, message)
            self._committer.close(group.job, len(rows))


def too_large(tokens: int, plan: MemoryPlan) -> OutOfMemory:
    message = f"A prefix of {tokens:,} tokens does not fit. {plan.describe()}"
    return OutOfMemory(message, hint=MORE_PREFIX)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a failure means that fewer tokens at once might work."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
