"""The first step of a batch behind a prefix whose layers are still coming."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from preread.engine.committer import Committer
from preread.engine.jobs import Job
from preread.engine.layers import Layers, NotComing
from preread.engine.runner import Runner
from preread.engine.sampler import Flight
from preread.engine.scheduler import Scheduler
from preread.engine.step import Step
from preread.tokens.batch import TokenBatch

log = logging.getLogger("preread.engine")


def follows(batch: TokenBatch, tokens: int) -> bool:
    """Whether all rows of a batch stand right behind one prefix of so many tokens, which others may
    find."""
    (first, *more) = batch.groups or (np.empty(0, np.int32),)
    here = not more and len(first) == tokens > 0
    return here and batch.reuse and bool((batch.group_of == 0).all())


class Trial:
    """Lets a job in and computes its first step, each layer of which waits for that of the prefix.
    Either that was done, and the job is one like any other; or nothing of it is left, and nobody
    has heard of it."""

    def __init__(
        self, scheduler: Scheduler, committer: Committer, runner: Runner,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._scheduler = scheduler
        self._admission = scheduler.admission
        self._committer = committer
        self._runner = runner
        self._clock = clock

    def run(self, job: Job, layers: Layers) -> tuple[Step, Flight] | None:
        """For a job that is alone. None: it was given up."""
        assert self._scheduler.alone, "others would wait"
        begun = self._admission.promise(job, self._clock())
        step = self._scheduler.schedule()
        begun.promised = False
        try:
            if step is None:  # no memory for a row
                raise NotComing
            step.layers = layers
            return step, self._runner.launch(step)
        except Exception as error:  # the ordinary way meets it again, if it is more than this
            if not isinstance(error, NotComing):
                log.info("a step beside a load failed: %s", error)
            self._drop(job)
            return None

    def _drop(self, job: Job) -> None:
        waiting = self._admission.remove(job, np.arange(len(job.batch)), self._clock())
        self._committer.close(job, len(waiting))
        self._committer.drop(job.number)
