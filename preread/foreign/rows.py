"""The rows of a token batch, one after another, on the model's thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from preread.backend import Ragged
from preread.foreign.memory import Memory
from preread.foreign.net import Ability, Net
from preread.foreign.reader import Reader, Run, Steps
from preread.foreign.sampling import Writer
from preread.metrics import Metrics
from preread.tokens.batch import (
    ERROR,
    GOES_ON,
    LENGTH,
    NOT_FINITE,
    STOP,
    ChooseSpec,
    GenerateSpec,
    LikelihoodSpec,
    News,
    TokenBatch,
)
from preread.tokens.labels import LabelTrie
from preread.tokens.misfits import misfits

if TYPE_CHECKING:
    from preread.types import Float32Array, Int32Array

Probe = Callable[[int, torch.Tensor], None]  # (row, logits [V] that its next token is chosen from)


@dataclass(slots=True, eq=False)
class Order:
    """A batch and what its reader says while it runs. tell: takes its news, from the model's
    thread. gone: nobody reads any more; ended: rows whose reader has what it wants. charge: tokens
    that were read for this batch and that no row has paid yet."""

    batch: TokenBatch
    tell: Callable[[News], None]
    gone: threading.Event = field(default_factory=threading.Event)
    ended: set[int] = field(default_factory=set)
    charge: int = 0


class Rows:
    """Runs orders. lease_s: kept rows stay so long after their last use."""

    def __init__(
        self, net: Net, reader: Reader, memory: Memory, metrics: Metrics, lease_s: float
    ) -> None:
        self._net = net
        self._reader = reader
        self._memory = memory
        self._metrics = metrics
        self._lease_s = lease_s
        self.probe: Probe | None = None

    def run(self, order: Order) -> Steps[None]:
        """All rows; what goes wrong in one is its own error."""
        batch = order.batch
        errors = misfits(batch, self._net.limit, self._net.vocab_size)
        for row in range(len(batch)):
            if row in errors:
                order.tell(_news(row, (int(batch.context[row]), 0, 0, 0), ERROR, errors[row]))
                continue
            run = Run(whole=batch.keep, reuse=batch.reuse)
            try:
                yield from self._row(order, row, run)
            except Exception as exc:  # one row's failure must not be everybody's
                if isinstance(exc, torch.OutOfMemoryError | MemoryError):
                    self._memory.clear()
                order.tell(_news(row, self._usage(order, row, run, 0), ERROR, _why(exc)))
            yield False

    def _row(self, order: Order, row: int, run: Run) -> Steps[None]:
        batch, spec = order.batch, order.batch.spec
        head = batch.head(row)
        prompt = np.concatenate((head, batch.own.row(row)))
        if batch.reuse and len(head):
            run.whole = run.whole or not self._alone(head, len(prompt))
            yield from self._share(order, head, len(prompt))
        if isinstance(spec, GenerateSpec):
            yield from self._generate(order, row, run, prompt, spec)
        elif isinstance(spec, ChooseSpec):
            yield from self._choose(order, row, run, prompt, spec.trie)
        else:
            yield from self._score(order, row, run, prompt, spec)

    def _alone(self, head: Int32Array, total: int) -> bool:
        """Whether a beginning is read on its own as it is in a text of so many tokens."""
        return self._net.regime(len(head)) == self._net.regime(total)

    def _share(self, order: Order, head: Int32Array, total: int) -> Steps[None]:
        """Have what rows of this length share in memory, at the cost of the first of them."""
        keeps = self._net.ability is Ability.KEEP and self._memory.fits(len(head))
        if not keeps or not self._alone(head, total):
            return
        regime = self._net.regime(total)
        known = self._memory.longest(head, regime)
        if known is not None and known.tokens == len(head):
            return
        run = Run(whole=True)
        yield from self._reader.read(run, head)
        self._memory.put(head, regime, self._reader.kept(run))
        order.charge += run.computed

    def _remember(self, batch: TokenBatch, row: int, run: Run) -> None:
        """Keep a row that ends well for its session, before its end is told: the next turn may come
        at once. Of one that read the shared beginning in its own way, keep that for the next."""
        if self._net.ability is not Ability.KEEP or not batch.reuse:
            return
        head = batch.head(row)
        if batch.keep:
            kv = self._reader.kept(run)
            kept = self._memory.put(run.tokens, run.regime, kv, self._lease_s)
            self._metrics.add("foreign.rows_kept" if kept else "foreign.rows_not_kept")
        elif run.whole and len(head) and not self._alone(head, len(run.tokens)):
            self._memory.put(head, run.regime, self._reader.kept(run, len(head)))

    def _generate(
        self, order: Order, row: int, run: Run, prompt: Int32Array, spec: GenerateSpec
    ) -> Steps[None]:
        writer = Writer(spec, int(order.batch.seeds[row]))
        new, bill = prompt, None
        while True:
            logits = (yield from self._reader.read(run, new))[0]
            bill = bill or self._usage(order, row, run, 0)
            if self.probe is not None:
                self.probe(row, logits)
            token, logprob, code = writer.next(logits)
            usage = (*bill[:3], writer.written)
            why = writer.error or NOT_FINITE if code == ERROR else ""
            if code in (STOP, LENGTH):
                self._remember(order.batch, row, run)
            order.tell(_news(row, usage, code, why, token=token, logprob=logprob))
            if code != GOES_ON:
                return
            if row in order.ended:
                self._remember(order.batch, row, run)
                return
            new = np.array([token], np.int32)
            yield True

    def _choose(
        self, order: Order, row: int, run: Run, prompt: Int32Array, trie: LabelTrie
    ) -> Steps[None]:
        """Labels longer than a token are read on branches of the prompt, one pass for each."""
        logits = yield from self._reader.read(run, prompt)
        edges = np.full(len(trie.edge_node), np.nan, np.float32)
        first = np.flatnonzero(trie.edge_node == 0)
        edges[first] = _logprobs(logits[:1].expand(len(first), -1), trie.edge_token[first])
        for path in sorted(trie.paths, key=len, reverse=True):
            inner = list(path[1:])
            if np.isnan(edges[inner]).any():
                tokens = trie.edge_token[list(path)].astype(np.int32)
                branch = self._reader.branch(run)
                said = yield from self._reader.read(branch, tokens[:-1], len(inner))
                edges[inner] = _logprobs(said, tokens[1:])
                yield True
        usage = self._usage(order, row, run, 0)
        if np.isnan(edges).any() or not bool(logits.amax().isfinite()):
            order.tell(_news(row, usage, ERROR, NOT_FINITE))
            return
        self._remember(order.batch, row, run)
        order.tell(_news(row, usage, STOP, scores=trie.score(edges[None])))

    def _score(
        self, order: Order, row: int, run: Run, text: Int32Array, spec: LikelihoodSpec
    ) -> Steps[None]:
        """The last token is a target only."""
        count = int(spec.counts[row])
        logits = yield from self._reader.read(run, text[:-1], count)
        targets = text[-count:]
        scores = _logprobs(logits, targets)
        greedy = bool((logits.argmax(-1).cpu().numpy() == targets).all())
        usage = self._usage(order, row, run, 0)
        if np.isnan(scores).any():
            order.tell(_news(row, usage, ERROR, NOT_FINITE))
            return
        self._remember(order.batch, row, run)
        order.tell(_news(row, usage, STOP, scores=scores[None], agree=greedy))

    def _usage(self, order: Order, row: int, run: Run, wrote: int) -> tuple[int, int, int, int]:
        """context, cached, computed, output. The first row that runs pays for what was read for all
        of them."""
        batch = order.batch
        total = int(batch.base[row]) + len(batch.own.row(row))
        paid = min(order.charge, run.reused) if len(run.tokens) else 0
        order.charge = 0 if len(run.tokens) else order.charge
        reused = run.reused - paid
        computed = total - reused if len(run.tokens) else 0
        return int(batch.context[row]), reused, computed, wrote


def _logprobs(logits: torch.Tensor, tokens: Any) -> Float32Array:
    """log P of one token per row of logits [n, V]."""
    picked = torch.from_numpy(np.asarray(tokens, np.int64)).to(logits.device)
    values = logits.gather(-1, picked[:, None])[:, 0] - logits.logsumexp(-1)
    result: Float32Array = values.float().cpu().numpy()
    return result


def _news(
    row: int, usage: tuple[int, ...], code: int, error: str = "", *, token: int = -1,
    logprob: float = 0.0, scores: Float32Array | None = None, agree: bool = False,
) -> News:  # fmt: skip
    wrote = int(token >= 0)
    return News(
        rows=np.array([row], np.int32),
        tokens=Ragged(np.array([token] * wrote, np.int32), np.array([0, wrote])),
        logprobs=np.array([logprob] * wrote, np.float32),
        finish=np.array([code], np.int8),
        usage=np.array([usage], np.int32),
        age=np.zeros(1, np.float32),
        scores=np.zeros((1, 0), np.float32) if scores is None else scores,
        agree=np.array([agree]),
        errors={row: error} if error else {},
    )


def _why(exc: Exception) -> str:
    if isinstance(exc, torch.OutOfMemoryError | MemoryError):
        return "out of memory. Lower max_tokens, shorten the prompt or choose a smaller model."
    return str(exc) or repr(exc)
