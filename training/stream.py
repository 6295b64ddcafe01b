"""Worker processes that turn the generator into an endless stream of token arrays.

One worker puts chunks of whole sequences into a queue: token ids (uint16), weights of each token
as a target in percent (uint8; 0 means part of a document), branches (int32; 0 means document, see
branches.py) and the lengths of the sequences. Attention never crosses sequences.
"""

import multiprocessing as mp
import os
import queue
import random
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.bank import Bank
from training.branches import BLOCK, Layout, Lists, block_lists, positions
from training.chat_format import START, render
from training.documents import Conversation, Plan, make_conversation
from training.make_tokenizer import open_bank

CHARS_PER_TOKEN = 3.2
LONGEST = 16_384
BATCH = 48
"""Conversations tokenized at once."""


class Chunk(NamedTuple):
    """Whole sequences, one after the other."""

    tokens: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.uint8]
    branches: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]


class Sequence(NamedTuple):
    """One conversation: tokens, weights and branches, all (N,)."""

    tokens: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.uint8]
    branches: npt.NDArray[np.int32]


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
    *["two-hop"] * 4,
    *["note"] * 4,
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


CHAINED = 0.12
"""Share of the conversations whose questions see all earlier ones, as in a session."""


def places(ids: npt.NDArray[np.uint16], marker: tuple[int, ...]) -> list[int]:
    """Where a run of tokens begins."""
    starts = np.flatnonzero(ids[: len(ids) - len(marker) + 1] == marker[0]).tolist()
    return [at for at in starts if tuple(ids[at : at + len(marker)].tolist()) == marker]


def weigh(ids: npt.NDArray[np.uint16], marker: tuple[int, ...], end: int) -> npt.NDArray[np.uint8]:
    """Percent weights: answers up to 100 (long answers less for each token), everything else 0."""
    weights = np.zeros(len(ids), np.uint8)
    ends = np.flatnonzero(ids == end)
    for start in places(ids, marker):
        begin = start + len(marker)
        if begin < len(ids):
            stop = int(ends[np.searchsorted(ends, begin)]) + 1
            length = stop - begin
            weights[begin:stop] = 100 if length <= 16 else max(12, 1600 // length)
    return weights


def branch(
    ids: npt.NDArray[np.uint16], marker: tuple[int, ...], skills: Iterable[str]
) -> npt.NDArray[np.int32]:
    """The branch of each token: every question opens one, except a follow-up."""
    out = np.zeros(len(ids), np.int32)
    opened = 0
    for start, skill in zip(places(ids, marker), skills, strict=True):
        opened += skill != "follow-up"
        out[start:] = opened
    return out


class Maker:
    """Makes chunks; one in each worker."""

    def __init__(self, bank: Bank, tokenizer: Tokenizer, seed: int) -> None:
        self.bank = bank
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.asked, self.marker = (
            tuple(tokenizer.encode(f"{START}{role}\n", add_special_tokens=False).ids)
            for role in ("user", "assistant")
        )
        end = tokenizer.token_to_id("<|im_end|>")
        assert end is not None
        self.end = end

    def chunk(self, phase: Lengths, count: int = BATCH) -> Chunk:
        """The next sequences."""
        made: list[Conversation] = []
        while len(made) < count:
            conversation = make_conversation(self.rng, self.bank, draw_plan(self.rng, phase))
            if conversation:
                made.append(conversation)
        encoded = self.tokenizer.encode_batch_fast(
            [render(conversation.messages) for conversation in made], add_special_tokens=False
        )
        rows = [
            self._sequence(np.array(encoding.ids, np.uint16), conversation)
            for encoding, conversation in zip(encoded, made, strict=True)
            if len(encoding.ids) <= phase.limit
        ]
        lengths = np.array([len(row.tokens) for row in rows], np.int32)
        tokens, weights, branches = zip(*rows, strict=True)
        return Chunk(
            np.concatenate(tokens), np.concatenate(weights), np.concatenate(branches), lengths
        )

    def _sequence(self, ids: npt.NDArray[np.uint16], made: Conversation) -> Sequence:
        weights = weigh(ids, self.marker, self.end)
        if not made.apart or self.rng.random() < CHAINED:
            return Sequence(ids, weights, np.zeros(len(ids), np.int32))
        return Sequence(ids, weights, branch(ids, self.asked, made.skills))


def work(folder: str, seed: int, phase: "Synchronized[int]", out: Any) -> None:
    """A worker's endless loop."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    maker = Maker(open_bank(), Tokenizer.from_file(str(Path(folder) / "tokenizer.json")), seed)
    while True:
        current = PHASES[phase.value]
        out.put(maker.chunk(current, BATCH if phase.value == 0 else 12))


class Batch(NamedTuple):
    """A flat batch: `tokens` (T,), who sees whom, `places` (K,) that predict, `weights` (K,)."""

    tokens: npt.NDArray[np.int64]
    layout: Layout
    lists: Lists
    places: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


class Stream:
    """Batches from many workers. When workers are slower than the model, sequences are shown
    again.
    """

    def __init__(self, folder: Path, workers: int, seed: int, reuse: int = 3) -> None:
        context = mp.get_context("spawn")
        self.phase = context.Value("i", 0)
        self.queue: Any = context.Queue(maxsize=150)
        self.pool: list[tuple[Sequence, int]] = []
        self.rng = np.random.default_rng(seed)
        self.reuse = reuse
        self.fresh = 0
        self.shown = 0
        self.processes = [
            context.Process(
                target=work,
                args=(str(folder), 1000 * seed + n, self.phase, self.queue),
                daemon=True,
            )
            for n in range(workers)
        ]
        for process in self.processes:
            process.start()

    def _take(self, wait: bool) -> bool:
        try:
            chunk: Chunk = self.queue.get(timeout=60) if wait else self.queue.get_nowait()
        except queue.Empty:
            return False
        self.fresh += len(chunk.tokens)
        at = 0
        for length in chunk.lengths.tolist():
            own = slice(at, at + length)
            row = Sequence(chunk.tokens[own], chunk.weights[own], chunk.branches[own])
            self.pool.append((row, self.reuse))
            at += length
        return True

    def _next(self) -> Sequence:
        """A random sequence of the pool; used up ones leave it."""
        while len(self.pool) < 2000 and self._take(wait=len(self.pool) < 300):
            pass
        place = int(self.rng.integers(len(self.pool)))
        row, left = self.pool[place]
        if left <= 1 or self.queue.qsize() > 20:
            self.pool[place] = self.pool[-1]
            self.pool.pop()
        else:
            self.pool[place] = (row, left - 1)
        self.shown += len(row.tokens)
        return row

    def batch(self, size: int) -> Batch:
        """A batch of `size` tokens; what no sequence fills is padding."""
        picked: list[Sequence] = []
        used = misses = 0
        while misses < 8:
            row = self._next()
            if used + len(row.tokens) <= size:
                picked.append(row)
                used += len(row.tokens)
            else:
                misses += 1
        return pack(picked, size, self.rng)

    def close(self) -> None:
        """Stop the workers."""
        for process in self.processes:
            process.terminate()


def pack(picked: list[Sequence], size: int, rng: np.random.Generator) -> Batch:
    """Lay sequences one after the other and choose which places predict: all answers, some of the
    documents. Padding sees one block of itself.
    """
    used = sum(len(row.tokens) for row in picked)
    rest = np.arange(size - used, dtype=np.int32)
    tokens = np.zeros(size, np.int64)
    tokens[:used] = np.concatenate([row.tokens for row in picked])
    target = np.full(size, -1, np.int16)
    target[: used - 1] = np.concatenate([row.weights for row in picked])[1:]
    target[np.cumsum([len(row.tokens) for row in picked]) - 1] = -1
    layout = Layout(
        np.repeat(
            np.arange(len(picked) + 1, dtype=np.int32),
            [*(len(row.tokens) for row in picked), len(rest)],
        ),
        np.concatenate([*(row.branches for row in picked), 1 + rest // BLOCK]),
        np.concatenate([*(positions(row.branches) for row in picked), rest.astype(np.int64)]),
    )
    room = size // 4
    answers = np.flatnonzero(target > 0)[:room]
    others = np.flatnonzero(target == 0)
    extra = rng.choice(others, room - len(answers), replace=len(others) < room)
    index = np.concatenate([answers, extra])
    weights = np.maximum(target[index], 5).astype(np.float32) / 100
    return Batch(tokens, layout, block_lists(layout), index, weights)
