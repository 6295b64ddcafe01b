"""One round of the soak: random moves on one engine that has little memory and a model that fails,
then every row against the same row alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from soak_jobs import LONGEST, OWN, Faulty, Judge, Row, alone, job, prompt, text

from preread.config import EngineSection
from preread.engine.engine import Engine
from preread.engine.reading import Reading
from preread.models.config import Family
from preread.testing.models import forward, load_decoder, write_tiny_model
from preread.tokens.batch import TokenBatch
from preread.types import Finish

STEPS = 5000  # after which a round must have ended
TICK_S = 0.01  # of the engines' clock, per step: rounds do not depend on the machine's speed
SLACK = {"float32": 1e-4, "bfloat16": 0.2}  # of log-probabilities of these models
WIDER = {"float32": "float64", "bfloat16": "float32"}
SECTION = EngineSection(
    prefix_memory_mb=16,
    suffix_memory_mb=16,
    extent_tokens=16,
    page_tokens=4,
    prefill_chunk=48,
    lease_s=1.0,
)


class Setup(NamedTuple):
    """One engine. dtype: on CUDA; float32 on a CPU."""

    family: Family
    dtype: str
    ahead: bool
    extents: int
    pages: int
    max_sequences: int
    batch_tokens: int


SETUPS = (
    Setup("qwen3", "float32", False, 70, 120, 10, 96),
    Setup("llama", "bfloat16", True, 26, 120, 10, 96),
    Setup("qwen2", "bfloat16", True, 70, 50, 16, 160),
    Setup("mistral", "float32", False, 26, 50, 6, 64),
)


class Wrong(Exception):
    """The engine did what it must not."""


class Clock:
    """Seconds that pass when it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """One engine, its model with faults, and what recomputes its rows."""

    def __init__(self, setup: Setup, folder: Path, device: torch.device) -> None:
        dtype = setup.dtype if device.type == "cuda" else "float32"
        wide = 64 if device.type == "cuda" else 16  # heads that the kernels take
        write_tiny_model(folder, setup.family, seed=1, head_dim=wide)
        self.model = load_decoder(folder, dtype, device)
        self.faulty = Faulty(self.model)
        self.judge = Judge(load_decoder(folder, WIDER[dtype], device), SLACK[dtype])
        self.clock = Clock()
        section = replace(
            SECTION,
            max_sequences=setup.max_sequences,
            batch_tokens=setup.batch_tokens,
            truth_check=True,
        )
        plan = Engine(self.faulty, section).plan
        plan = replace(plan, extents=setup.extents, pages=setup.pages)
        self.engine = Engine(self.faulty, section, plan=plan, clock=self.clock, ahead=setup.ahead)

    def every_width(self) -> None:
        """Steps of every size: oneDNN makes a program for each, half a megabyte that stays."""
        for tokens in range(1, LONGEST + OWN + 10):
            forward(self.model, [[0] * tokens])

    def sequential(self) -> Engine:
        """A new engine with room for any row, that runs one at a time and step by step."""
        slow = replace(SECTION, max_sequences=1, batch_tokens=512, graphs=False)
        return Engine(self.faulty, slow, ahead=False)


class Round:
    """Random moves on one engine, until it is idle again."""

    def __init__(self, bench: Bench, make: np.random.Generator) -> None:
        self._bench, self._engine, self._make = bench, bench.engine, make
        self._books = [text(make, int(n)) for n in make.integers(20, 300, 5)]
        self._memory_short, bench.faulty.poisoned = make.random(2) < 0.5
        self._held: list[Reading] = []
        self.jobs: dict[int, TokenBatch] = {}
        self.rows: dict[tuple[int, int], Row] = {}
        self.dropped: set[tuple[int, int]] = set()  # cancelled or left by their reader
        self.steps = 0

    def run(self, moves: int) -> None:
        """So many times something happens, or not, and then a step; then steps until it is idle.
        Raises Wrong or AssertionError."""
        for _ in range(moves):
            self._move()
            self._step()
        self._bench.faulty.most = 0
        for reading in self._held:
            self._engine.release(reading)
        while not self._engine.idle or self._engine.has_news:
            self._step()
        self._whole()

    def compare(self) -> None:
        """Every row against the same row alone. Raises Wrong."""
        engine = self._bench.sequential()
        for (number, row), got in self.rows.items():
            batch = self.jobs[number]
            if got.finish is Finish.CANCELLED or got.finish is None:
                if (number, row) not in self.dropped:
                    raise Wrong(f"job {number} row {row} ended as {got.finish}, which nobody asked")
            want = Row()
            engine.submit(alone(batch, row))
            while not engine.idle or engine.has_news:
                for news in engine.step().values():
                    want.hear(news, 0)
            if fault := self._bench.judge.wrong(batch, row, got, want):
                kind = type(batch.spec).__name__
                raise Wrong(f"job {number} row {row} ({kind} {prompt(batch, row)}): {fault}")

    def _move(self) -> None:
        make, engine, chance = self._make, self._engine, self._make.random()
        if chance < 0.30:
            batch = job(make, self._books, poisoned=self._bench.faulty.poisoned)
            number = engine.submit(batch)
            self.jobs[number] = batch
            self.rows |= {(number, row): Row() for row in range(len(batch))}
        elif chance < 0.35:
            self._cancel()
        elif chance < 0.38:
            self._leave()
        elif chance < 0.42:
            self._continue()
        elif chance < 0.46:
            book = self._books[int(make.integers(len(self._books)))]
            reading = engine.hold(np.array(book, np.int32))
            self._held.append(reading)
        elif chance < 0.52 and self._held:
            reading = self._held.pop(int(make.integers(len(self._held))))
            engine.release(reading, lease_s=float(make.choice([0.0, 1.0])))
        elif chance < 0.56 and self._held and self._held[-1].placed:
            engine.read(self._held[-1])
        short = self._memory_short and make.random() < 0.08
        self._bench.faulty.most = int(make.choice([24, 40, 80])) if short else 0

    def _cancel(self) -> None:
        """Some rows of a job that has not ended, or all."""
        going = {number for (number, _), row in self.rows.items() if row.finish is None}
        if going:
            number = int(self._make.choice(sorted(going)))
            n = len(self.jobs[number])
            rows = np.flatnonzero(self._make.random(n) < 0.5)
            self._engine.cancel(number, None if len(rows) == n else rows)
            self.dropped |= {(number, row) for row in rows.tolist()}

    def _leave(self) -> None:
        """The reader of a row has seen enough."""
        read = [key for key, row in self.rows.items() if row.tokens and row.finish is None]
        if read:
            key = read[int(self._make.integers(len(read)))]
            self._engine.finish(*key)
            self.dropped.add(key)

    def _continue(self) -> None:
        """A finished text becomes one that others go on with."""
        ended = [key for key, row in self.rows.items() if row.whole and row.tokens]
        if ended:
            number, row = ended[int(self._make.integers(len(ended)))]
            whole = prompt(self.jobs[number], row) + self.rows[number, row].tokens
            self._books[int(self._make.integers(len(self._books)))] = whole

    def _step(self) -> None:
        self._bench.clock.now += TICK_S
        for number, news in self._engine.step().items():
            for i, row in enumerate(news.rows.tolist()):
                self.rows[number, row].hear(news, i)
        self.steps += 1
        if self.steps > STEPS:
            raise Wrong(f"not idle after {STEPS} steps")

    def _whole(self) -> None:
        """Nobody holds anything. Raises Wrong."""
        engine = self._engine
        engine.check()
        if engine.pages.free != engine.pages.total:
            raise Wrong(f"{engine.pages.total - engine.pages.free} pages are held by nobody")
        if pinned := sum(segment.pins for segment in engine.tree.segments):
            raise Wrong(f"{pinned} pins on the tree are nobody's")
