"""Worker processes that turn the generator into an endless stream of batches."""

import multiprocessing as mp
import os
import random
import time
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from training.bank import Bank
from training.batches import Batch, Encoder, Sequence, pack
from training.documents import Conversation, Plan, make_conversation
from training.make_tokenizer import open_bank

CHARS_PER_TOKEN = 3.2
LONGEST = 16_384
AT_ONCE = 24
"""Conversations tokenized at once."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Shares of the sequence lengths of a phase: (share, lowest, highest) in tokens of the
    document.
    """

    shares: tuple[tuple[float, int, int], ...]
    limit: int


PHASES: tuple[Lengths, ...] = (
    Lengths(((0.34, 60, 500), (0.36, 400, 1400), (0.25, 1400, 3800), (0.05, 3800, 8000)), 8704),
    Lengths(
        ((0.35, 100, 1500), (0.38, 1500, 4200), (0.17, 4200, 8000), (0.1, 8000, 14800)), LONGEST
    ),
)


FOCUS = (
    *["label"] * 5,
    *["extraction"] * 4,
    *["comparison"] * 3,
    *["two-hop"] * 5,
    *["note"] * 3,
    *["policy"] * 3,
    "unanswerable",
    "list",
    "fact",
)
"""Skills to which some conversations are devoted, so that the rarer ones get their share."""


def draw_plan(rng: random.Random, phase: Lengths) -> Plan:
    """A random plan of a phase: length, number of questions, and at times one skill alone."""
    share = rng.random()
    low, high = phase.shares[-1][1:]
    for part, first, last in phase.shares:
        if share < part:
            low, high = first, last
            break
        share -= part
    chars = int(rng.randrange(low, high) * CHARS_PER_TOKEN)
    turns = rng.choice((8, 16, 32, 48, 72, 96))
    if rng.random() < 0.4 and chars < 8_000:
        skill = rng.choice(FOCUS)
        return Plan(chars, min(turns, 4) if skill == "extraction" else turns, skill)
    return Plan(chars, turns)


class Maker:
    """Makes batches; one in each worker."""

    def __init__(self, bank: Bank, tokenizer: Tokenizer, seed: int) -> None:
        self.bank = bank
        self.encoder = Encoder(tokenizer)
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.pool: list[Sequence] = []

    def sequences(self, phase: Lengths, count: int = AT_ONCE) -> list[Sequence]:
        """The next sequences; those longer than the phase's limit are left out."""
        made: list[Conversation] = []
        while len(made) < count:
            conversation = make_conversation(self.rng, self.bank, draw_plan(self.rng, phase))
            if conversation:
                made.append(conversation)
        rows = self.encoder.encode(made, self.numbers)
        return [row for row in rows if len(row.tokens) <= phase.limit]

    def batch(self, phase: Lengths, size: int) -> Batch:
        """A batch of `size` tokens; what no sequence fills is padding."""
        picked: list[Sequence] = []
        rest: list[Sequence] = []
        used = 0
        while len(rest) < 8:
            self.pool = self.pool or self.sequences(phase)
            row = self.pool.pop()
            if used + len(row.tokens) <= size:
                picked.append(row)
                used += len(row.tokens)
            else:
                rest.append(row)
        self.pool += rest
        return pack(picked, size, self.numbers)


def work(folder: str, seed: int, size: int, phase: "Synchronized[int]", out: Any) -> None:
    """A worker's endless loop."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    maker = Maker(open_bank(), Tokenizer.from_file(str(Path(folder) / "tokenizer.json")), seed)
    while True:
        out.put(maker.batch(PHASES[phase.value], size))


class Stream:
    """Batches of `size` tokens from many workers."""

    def __init__(self, folder: Path, workers: int, seed: int, size: int) -> None:
        context = mp.get_context("spawn")
        self.phase = context.Value("i", 0)
        self.queue: Any = context.Queue(maxsize=3 * workers)
        self.shown = 0
        self.waited = 0.0
        self.processes = [
            context.Process(
                target=work,
                args=(str(folder), 1000 * seed + n, size, self.phase, self.queue),
                daemon=True,
            )
            for n in range(workers)
        ]
        for process in self.processes:
            process.start()

    def batch(self) -> Batch:
        """The next batch; `waited` sums the seconds in which there was none."""
        started = time.monotonic()
        made: Batch = self.queue.get(timeout=120)
        self.waited += time.monotonic() - started
        self.shown += int((made.layout.sequence < made.layout.sequence[-1]).sum())
        return made

    def close(self) -> None:
        """Stop the workers."""
        for process in self.processes:
            process.terminate()
