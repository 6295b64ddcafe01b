"""Law 1 measured on a transformers model: see preread.tokens.parity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from preread.errors import EngineError
from preread.foreign.load import ForeignModel, wider
from preread.foreign.memory import Memory
from preread.foreign.net import Net
from preread.foreign.reader import Reader
from preread.foreign.rows import Order, Rows
from preread.metrics import Metrics
from preread.tokens.batch import News, TokenBatch
from preread.tokens.parity import Forward, Observation, ParityReport, judge, trials

if TYPE_CHECKING:
    from preread.types import Int32Array

PREFIX = 256
LONGEST = 1024  # a window up to this size is passed; a longer one would take minutes to fill
ROOM = 64  # tokens for question and answer
PIECE = 100  # so that prefixes are read in several passes


def parity(model: ForeignModel, *, prompts: int = 8, steps: int = 8, seed: int = 0) -> ParityReport:
    """Random prompts on a few random prefixes, longer than the model's window where that is small:
    first cold, then from memory, and one alone. Needs memory for the weights in a wider type."""
    net = model.net
    window = net.caches.window()
    length = max(PREFIX, window + ROOM) if window <= LONGEST else PREFIX
    length = min(length, net.limit - ROOM)
    if net.regime(length) != net.regime(length + ROOM):
        length -= ROOM  # a teacher-forced answer would be read otherwise than it was written
    memory, seen = Memory(1 << 40, 1), []
    for batch in trials(net.vocab_size, prompts, length, steps, seed):
        seen += observe(net, memory, batch)
    return judge(seen, whole(wider(model)), whole(net))


def observe(net: Net, memory: Memory, batch: TokenBatch, piece: int = PIECE) -> list[Observation]:
    """Run a generating batch on a net that nobody else uses. Raises EngineError if a row fails."""
    rows = Rows(net, Reader(net, memory, piece), memory, Metrics(), 0.0)
    seen: list[list[torch.Tensor]] = [[] for _ in range(len(batch))]
    wrote: list[list[int]] = [[] for _ in range(len(batch))]

    def tell(news: News) -> None:
        if news.errors:
            raise EngineError(f"A row failed: {next(iter(news.errors.values()))}")
        wrote[int(news.rows[0])] += news.tokens.values.tolist()

    rows.probe = lambda row, logits: seen[row].append(logits.float().cpu())
    for _ in rows.run(Order(batch, tell)):
        pass
    return [
        Observation(
            np.concatenate((batch.head(row), batch.own.row(row), np.array(out, np.int32))),
            torch.stack(seen[row][: len(out)]),
        )
        for row, out in enumerate(wrote)
        if out
    ]


def whole(net: Net) -> Forward:
    """One pass without any cache."""

    def forward(tokens: Int32Array, last: int) -> torch.Tensor:
        return net.forward(tokens[:-1], keep=last)

    return forward
