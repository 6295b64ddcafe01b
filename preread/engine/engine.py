"""The engine: token arrays in, news out. Sync, owned by one thread, no text anywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from preread.config import EngineSection
from preread.engine.committer import Committer, Promise
from preread.engine.failing import Failing, too_large
from preread.engine.fast import fast_covers
from preread.engine.gathering import by_config
from preread.engine.jobs import Job
from preread.engine.keeping import keep_row
from preread.engine.kv import KVShape
from preread.engine.layers import Layers
from preread.engine.ledger import Ledger
from preread.engine.marks import Marks
from preread.engine.misfits import misfits
from preread.engine.notices import Notice, Told
from preread.engine.parts import Parts
from preread.engine.plan import MemoryPlan, plan_memory
from preread.engine.prefix import PrefixTree
from preread.engine.reading import Reading
from preread.engine.sampler import Flight, Sampler
from preread.engine.scheduler import Scheduler
from preread.engine.step import Step
from preread.engine.trial import Trial, follows
from preread.errors import GroupLost
from preread.metrics import Metrics
from preread.models.interface import Decoder
from preread.tokens.batch import News, TokenBatch

if TYPE_CHECKING:
    from preread.types import Int32Array, Int64Array

log = logging.getLogger("preread.engine")


class InFlight(NamedTuple):
    """A step on the device. notices: to be given when it is done."""

    promise: Promise
    flight: Flight
    notices: list[Notice]


class Engine:
    """Runs token batches over a decoder. Not thread-safe."""

    def __init__(
        self,
        decoder: Decoder,
        config: EngineSection,
        *,
        plan: MemoryPlan | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        ahead: bool | None = None,
        parts: Parts | None = None,
        kv_precision: str = "full",
    ) -> None:
        """plan: sizes of the pools; worked out from `config` and the free memory if not given.
        ahead: launch a step before the one before it has said what it chose; by default on devices
        that work by themselves. parts: what makes memory and runner, if not one device alone.
        kv_precision: one of kernels.kv.PRECISIONS."""
        self.decoder = decoder
        self.config = config = config.limited(decoder.device.type)
        self.metrics = metrics or Metrics()
        self.clock = clock
        self.shape = KVShape.of(decoder, kv_precision)
        self.plan = plan or plan_memory(self.shape, config)
        self.parts, self.marks = parts or Parts(), Marks()
        self.arena, self.pages = pools = self.parts.pools(self.shape, self.plan)
        self.tree = PrefixTree(self.arena, self.metrics)
        self._ahead = decoder.device.type == "cuda" if ahead is None else ahead
        gathers = by_config(config, self.shape, fast=fast_covers(decoder, config, kv_precision))
        self._flight: InFlight | None = None
        self._scheduler = Scheduler(
            config, self.tree, self.pages, self.metrics, clock, gathers,
            slots=config.max_sequences * (1 + self._ahead), land=self._land,
        )  # fmt: skip
        self._seqs = self._scheduler.seqs
        self._admission, self._line = self._scheduler.admission, self._scheduler.line
        self.readings = self._scheduler.readings
        self._ledger = Ledger()
        self._committer = Committer(
            self._seqs, self._scheduler.branches, self._admission, self._ledger, self._keep, clock
        )
        self._sampler = Sampler(decoder, self._seqs)
        self._runner = self.parts.runner(decoder, pools, self._sampler, config)
        self._failing = Failing(
            self._scheduler, self._committer, self._ledger, self.plan, decoder.device, clock
        )
        self._trial = Trial(self._scheduler, self._committer, self._runner, clock)
        self._jobs = 0
        self.stalled = False  # nothing can run before somebody outside does something

    def step(self) -> dict[int, News]:
        """Schedule, launch, settle; returns the news of each job. Running ahead, what settles is
        the step before: the device works on this one meanwhile."""
        flying = self._flight is not None  # scheduling may settle it, and free memory too late
        step = self._scheduler.schedule()
        self.stalled = step is None and not flying and not self._failing.unblock()
        launched = None if step is None else self._launch(step)
        self._land()
        self._flight = launched
        if launched is not None and (not self._ahead or self._sampler.waits(launched.promise.step)):
            self._land()
        if self.config.truth_check:
            self.check()
        return self._ledger.take()

    @property
    def idle(self) -> bool:
        """No row runs or waits, no prefix is being read or waits for memory."""
        busy = self.readings.busy or self._line.head is not None
        return not self._admission.jobs and not busy and self._flight is None

    @property
    def wait_s(self) -> float | None:
        """Seconds after which the next step is due though nothing can run now and nobody outside
        did anything; None: there is no such time."""
        return self.readings.wait_s if self.stalled else None

    @property
    def has_news(self) -> bool:
        """Something ended between steps; the next step tells."""
        return bool(self._ledger)

    def submit(self, batch: TokenBatch, *, prepared: bool = False) -> int:
        """Queue a batch; returns its job number. Rows that cannot run at all end in the next news
        with the reason; the others are not disturbed. prepared: the prefix was made ready for it
        and is still held; it stays until some of the rows have run."""
        self._jobs += 1
        errors = misfits(batch, self.decoder, self.plan, self.marks)
        for row, message in errors.items():
            self._ledger.fail(self._jobs, np.array([row]), message)
        rows = np.setdiff1d(np.arange(len(batch)), list(errors))
        if len(rows):
            self._admission.add(Job(self._jobs, batch, rows), self.clock(), prepared=prepared)
        return self._jobs

    @property
    def alone(self) -> bool:
        """Whether whoever came now would have the engine for itself."""
        return self._scheduler.alone

    def stream(self, batch: TokenBatch, reading: Reading, layers: Layers) -> int | None:
        """Compute the first step of a batch behind a held prefix that a tier brings by layer, while
        it comes. Returns the job's number when that is done: all of the prefix is there, too, and
        the job goes on like any other. None: it was not begun, or given up, and nothing of it is
        left. Others wait meanwhile; `layers.quit` ends it."""
        self._land()
        if not self.alone or not follows(batch, reading.upto):
            return None
        if misfits(batch, self.decoder, self.plan, self.marks):
            return None  # told in the ordinary way
        self._jobs += 1
        job = Job(self._jobs, batch, np.arange(len(batch)))
        if (begun := self._trial.run(job, layers)) is None:
            self.metrics.add("engine.steps_given_up")
            return None
        self.metrics.add("engine.steps_by_layer")
        self.loaded(reading, reading.upto)  # it has seen all of it
        self._flight = self._launched(*begun)
        if not self._ahead or self._sampler.waits(begun[0]):
            self._land()
        return job.number

    def cancel(self, number: int, rows: Int64Array | None = None) -> None:
        """End rows (all of the job's) that have not ended, freeing what they hold at once."""
        if (job := self._admission.jobs.get(number)) is None:
            return
        every = np.arange(len(job.batch)) if rows is None else rows
        self._ended_waiting(job, every)
        self._committer.cancel(number, rows)

    def _ended_waiting(self, job: Job, rows: Int64Array) -> None:
        waiting = self._admission.remove(job, rows, self.clock())
        self._ledger.cancel(job.number, waiting)
        self._committer.close(job, len(waiting))

    def withdraw(self, number: int) -> None:
        """End the rows of a job that wait, CANCELLED; those that run go on."""
        if (job := self._admission.jobs.get(number)) is not None:
            self._ended_waiting(job, np.arange(len(job.batch)))

    def finish(self, number: int, row: int) -> None:
        """End a running row well, without news: its reader saw a stop string."""
        self._committer.finish(number, np.array([row]))

    def hold(
        self, tokens: Int32Array, told: Told | None = None, *, stores: bool = False
    ) -> Reading:
        """Want a prefix: it gets a place on the tree now or, while memory is held by others, later.
        told: called when it has, and while it is read; see Reading. stores: what is computed on its
        account will be saved. Release it. Raises OutOfMemory when it can never fit."""
        if len(tokens) > self.arena.capacity:
            raise too_large(len(tokens), self.plan)
        reading = Reading(tokens, told, stores=stores)
        self._line.join(reading, self.clock())
        return reading

    def read(self, reading: Reading) -> None:
        """Compute what is missing of a prefix that has its place in the coming steps. It is told at
        once and after every step; done when all is ready or reading.error is set."""
        self.readings.read(reading)

    def settle(self, reading: Reading) -> int:
        """How many tokens of a prefix that is ready were computed on its account: what nobody
        before it in the line of those who want them has paid."""
        return self.readings.settle(reading)

    def resident(self, tokens: Int32Array) -> bool:
        """Whether the whole prefix is in memory, so that nothing need be loaded or computed."""
        return self.tree.resident(tokens)

    def loading(self, reading: Reading, upto: int) -> int:
        """A tier holds the first `upto` tokens of a held prefix. Returns how many are in memory; if
        fewer, the missing ones are not computed until `loaded`."""
        if (ready := self.readings.ready(reading)) < upto:
            self.readings.loading(reading, True)
        return ready

    def loaded(self, reading: Reading, upto: int) -> None:
        """See Readings.loaded."""
        self.readings.loaded(reading, upto)

    def release(self, reading: Reading, lease_s: float = 0.0) -> None:
        """Let go of a prefix, which stays so long after each use where memory allows."""
        if reading.leaf is not None:
            self.tree.lease(reading.leaf, reading.upto, lease_s)
        self._line.leave(reading, self.clock())

    def end(self, error: Exception) -> None:
        """There will be no more steps: tell those who wait for a prefix."""
        self._line.end(error)

    def watch(self, probe: Callable[[int, int, torch.Tensor], None] | None) -> None:
        """Show (job, row, logits [V]) of every token about to be chosen; None: no longer."""
        seqs = self._seqs

        def each(slots: Int64Array, logits: torch.Tensor) -> None:
            for slot, row in zip(slots.tolist(), logits, strict=True):
                assert probe is not None
                probe(int(seqs.job[slot]), int(seqs.row[slot]), row)

        self._sampler.probe = each if probe is not None else None

    def check(self) -> None:
        """Verify every invariant. Raises AssertionError."""
        self.tree.check()
        self._scheduler.check()

    def _launch(self, step: Step) -> InFlight | None:
        self.marks.lift(step)
        try:
            flight = self._runner.launch(step)
        except GroupLost:  # there is nothing left to go on with
            raise
        except Exception as error:  # one row's failure must not be everybody's
            self._land()
            self.metrics.add("engine.steps_failed")
            self._failing.failed(step, error)
            return None
        return self._launched(step, flight)

    def _launched(self, step: Step, flight: Flight) -> InFlight:
        promise = self._committer.advance(step)
        notices = self.readings.commit(step.chunks)
        self._scheduler.good()
        self.metrics.add("engine.steps")
        self.metrics.add("engine.tokens", len(step.tokens))
        return InFlight(promise, flight, notices)

    def _land(self) -> bool:
        """Wait for what is in flight and settle it. False: nothing was."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._settle(flight)
        return flight is not None

    def _settle(self, flight: InFlight) -> None:
        self._committer.settle(flight.promise, flight.flight.outcome())
        self.readings.computed(flight.notices)

    def _keep(self, slot: int) -> None:
        kept = keep_row(
            slot, self._seqs, self._scheduler.branches, self.tree, self.arena, self.pages,
            self.clock(), self.config.lease_s,
        )  # fmt: skip
        self.metrics.add("engine.rows_kept" if kept else "engine.rows_not_kept")
