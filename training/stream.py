"""Worker processes that turn the generator into an endless stream of token arrays.

One worker puts chunks of whole sequences into a queue: token ids (uint16), weights of each token
as a target in percent (uint8; 0 means part of a document) and the lengths of the sequences.
Attention never crosses sequences.
"""

import multiprocessing as mp
import os
import queue
import random
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.bank import Bank
from training.chat_format import START, render
from training.documents import Plan, make_conversation
from training.make_tokenizer import open_bank

CHARS_PER_TOKEN = 3.2
LONGEST = 16_384
BATCH = 48
"""Conversations tokenized at once."""


class Chunk(NamedTuple):
    """Whole sequences, one after the other."""

    tokens: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.uint8]
    lengths: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Shares of the sequence lengths of a phase: (share, lowest, highest) in tokens of the
    document.
    """

    shares: tuple[tuple[float, int, int], ...]
    limit: int


PHASES: tuple[Lengths, ...] = (
    Lengths(((0.25, 60, 600), (0.37, 500, 1800), (0.31, 1800, 4200), (0.07, 4200, 8000)), 8704),
    Lengths(
        ((0.35, 100, 1500), (0.38, 1500, 4200), (0.17, 4200, 8000), (0.1, 8000, 14800)), LONGEST
    ),
)


FOCUS = (*["label"] * 6, *["extraction"] * 3, *["comparison"] * 2, *["two-hop"] * 2, "list", "fact")
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
    turns = rng.choice((1, 6, 16, 24, 32, 48))
    if rng.random() < 0.4 and chars < 8_000:
        skill = rng.choice(FOCUS)
        return Plan(chars, min(turns, 4) if skill == "extraction" else turns, skill)
    return Plan(chars, turns)


def weigh(ids: npt.NDArray[np.uint16], marker: Sequence[int], end: int) -> npt.NDArray[np.uint8]:
    """Percent weights: answers up to 100 (long answers less for each token), everything else 0."""
    weights = np.zeros(len(ids), np.uint8)
    starts = np.flatnonzero(ids == marker[0])
    ends = np.flatnonzero(ids == end)
    for start in starts.tolist():
        begin = start + len(marker)
        if begin < len(ids) and np.array_equal(ids[start:begin], marker):
            stop = int(ends[np.searchsorted(ends, begin)]) + 1
            length = stop - begin
            weights[begin:stop] = 100 if length <= 16 else max(12, 1600 // length)
    return weights


class Maker:
    """Makes chunks; one in each worker."""

    def __init__(self, bank: Bank, tokenizer: Tokenizer, seed: int) -> None:
        self.bank = bank
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.marker = tokenizer.encode(f"{START}assistant\n", add_special_tokens=False).ids
        end = tokenizer.token_to_id("<|im_end|>")
        assert end is not None
        self.end = end

    def chunk(self, phase: Lengths, count: int = BATCH) -> Chunk:
        """The next sequences."""
        texts: list[str] = []
        while len(texts) < count:
            made = make_conversation(self.rng, self.bank, draw_plan(self.rng, phase))
            if made:
                texts.append(render(made.messages))
        tokens, weights, lengths = [], [], []
        for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            ids = np.array(encoding.ids, np.uint16)
            if len(ids) > phase.limit:
                continue
            tokens.append(ids)
            weights.append(weigh(ids, self.marker, self.end))
            lengths.append(len(ids))
        return Chunk(np.concatenate(tokens), np.concatenate(weights), np.array(lengths, np.int32))


def work(folder: str, seed: int, phase: "Synchronized[int]", out: Any) -> None:
    """A worker's endless loop."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    maker = Maker(open_bank(), Tokenizer.from_file(str(Path(folder) / "tokenizer.json")), seed)
    while True:
        current = PHASES[phase.value]
        out.put(maker.chunk(current, BATCH if phase.value == 0 else 12))


class Batch(NamedTuple):
    """A flat batch: `tokens` (T,), `bounds` (S+1,) cumulative, `places` (K,) positions that
    predict, `weights` (K,).
    """

    tokens: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int32]
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
        self.pool: list[tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8], int]] = []
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
        for length in chunk.lengths:
            self.pool.append(
                (chunk.tokens[at : at + length], chunk.weights[at : at + length], self.reuse)
            )
            at += int(length)
        return True

    def _next(self) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
        """A random sequence of the pool; used up ones leave it."""
        while len(self.pool) < 2000 and self._take(wait=len(self.pool) < 300):
            pass
        place = int(self.rng.integers(len(self.pool)))
        tokens, weights, left = self.pool[place]
        if left <= 1 or self.queue.qsize() > 20:
            self.pool[place] = self.pool[-1]
            self.pool.pop()
        else:
            self.pool[place] = (tokens, weights, left - 1)
        self.shown += len(tokens)
        return tokens, weights

    def batch(self, size: int, sequences: int) -> Batch:
        """A batch of `size` tokens in at most `sequences` sequences; the rest is padding."""
        picked: list[tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]] = []
        used = misses = 0
        while len(picked) < sequences - 1 and misses < 6:
            tokens, weights = self._next()
            if used + len(tokens) <= size:
                picked.append((tokens, weights))
                used += len(tokens)
            else:
                misses += 1
        return pack(picked, size, sequences, self.rng)

    def close(self) -> None:
        """Stop the workers."""
        for process in self.processes:
            process.terminate()


def pack(
    picked: Sequence[tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]],
    size: int,
    sequences: int,
    rng: np.random.Generator,
) -> Batch:
    """Lay sequences one after the other and choose which positions are predicted: all answers,
    some documents.
    """
    tokens = np.zeros(size, np.int64)
    target = np.zeros(size, np.int16)
    bounds = np.full(sequences + 1, size, np.int32)
    at = 0
    for place, (ids, weights) in enumerate(picked):
        bounds[place] = at
        tokens[at : at + len(ids)] = ids
        target[at : at + len(ids) - 1] = weights[1:]
        target[at + len(ids) - 1] = -1
        at += len(ids)
    bounds[len(picked)] = at
    target[at:] = -1
    room = size // 4
    answers = np.flatnonzero(target > 0)[:room]
    others = np.flatnonzero(target == 0)
    extra = rng.choice(others, room - len(answers), replace=len(others) < room)
    index = np.concatenate([answers, extra])
    weights32 = np.maximum(target[index], 5).astype(np.float32) / 100
    return Batch(tokens, bounds, index, weights32)
