"""Token-level helpers: batches without text, and a driver that collects news."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from preread.backend import Ragged
from preread.config import EngineSection
from preread.engine.engine import Engine
from preread.tokens.batch import FINISHES, GenerateSpec, News, Spec, TokenBatch
from preread.types import Finish, Sampling

SMALL = EngineSection(
    prefix_memory_mb=4,
    suffix_memory_mb=2,
    extent_tokens=16,
    page_tokens=4,
    max_sequences=32,
    batch_tokens=256,
    prefill_chunk=48,
    truth_check=True,
)


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    offsets = np.cumsum([0, *(len(r) for r in rows)]).astype(np.int64)
    return Ragged(np.array([t for r in rows for t in r], np.int32), offsets)


def batch(
    own: Sequence[Sequence[int]],
    spec: Spec | None = None,
    *,
    prefixes: Sequence[Sequence[int]] = (),
    prefix_of: Sequence[int] | None = None,
    base: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    keep: bool = False,
    reuse: bool = True,
) -> TokenBatch:
    """Rows `own`, each after prefixes[prefix_of[i]] (default: the first, if there is one)."""
    n = len(own)
    group_of = np.array(prefix_of if prefix_of is not None else [0 if prefixes else -1] * n)
    groups = [np.array(p, np.int32) for p in prefixes]
    lengths = np.array([*(len(g) for g in groups), 0])
    full = lengths[group_of] if base is None else np.array(base)
    return TokenBatch(
        spec=spec or greedy(8),
        own=ragged(own),
        groups=groups,
        group_of=group_of.astype(np.int32),
        base=full.astype(np.int32),
        context=full.astype(np.int32),
        seeds=np.array(seeds if seeds is not None else [0] * n, np.uint64),
        keep=keep,
        reuse=reuse,
    )


def greedy(max_tokens: int, **options: object) -> GenerateSpec:
    return GenerateSpec(max_tokens, Sampling(), **options)  # type: ignore[arg-type]


@dataclass
class Answers:
    """All news of one job, by row."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    finish: dict[int, Finish] = field(default_factory=dict)
    usage: dict[int, tuple[int, ...]] = field(default_factory=dict)
    scores: dict[int, np.ndarray] = field(default_factory=dict)
    agree: dict[int, bool] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)

    def add(self, news: News) -> None:
        for i, row in enumerate(news.rows.tolist()):
            assert row not in self.finish, "news of a row that has ended"
            if len(new := news.tokens.row(i)):
                lo, hi = news.tokens.offsets[i : i + 2]
                self.tokens.setdefault(row, []).extend(new.tolist())
                self.logprobs.setdefault(row, []).extend(news.logprobs[lo:hi].tolist())
            if (finish := FINISHES[news.finish[i]]) is not None:
                self.finish[row] = finish
                self.usage[row] = tuple(news.usage[i].tolist())
                self.scores[row] = news.scores[i]
                self.agree[row] = bool(news.agree[i])
        self.errors.update(news.errors)

    def rows(self) -> list[list[int]]:
        return [self.tokens[i] for i in sorted(self.tokens)]


def drain(engine: Engine, *jobs: int, failures: bool = False) -> list[Answers]:
    """Run until idle; the answers of these jobs. failures: steps are meant to fail."""
    answers = {job: Answers() for job in jobs}
    for _ in range(5000):
        for job, news in engine.step().items():
            answers.setdefault(job, Answers()).add(news)
        if engine.idle:
            assert failures == ("engine.steps_failed" in engine.metrics.snapshot())
            return [answers[job] for job in jobs]
    raise AssertionError("the engine never became idle")


def run(engine: Engine, *batches: TokenBatch, failures: bool = False) -> list[Answers]:
    return drain(engine, *(engine.submit(b) for b in batches), failures=failures)


class Flaky:
    """A decoder that runs out of memory when a step is too large, or fails on one token."""

    def __init__(self, decoder, most: int = 10**9, poison: int = -1) -> None:
        self._decoder, self.most, self.poison, self.failures = decoder, most, poison, 0

    def __getattr__(self, name: str):
        return getattr(self._decoder, name)

    def hidden(self, tokens, positions, attend):
        if len(tokens) > self.most:
            self.failures += 1
            raise torch.OutOfMemoryError("injected")
        if (tokens == self.poison).any():
            self.failures += 1
            raise RuntimeError("poisoned")
        return self._decoder.hidden(tokens, positions, attend)


class Echo:
    """A decoder without weights, for tests of who runs when: after token t comes t + 1. sizes:
    tokens of every step."""

    layers = heads = kv_heads = 1
    head_dim = 8
    vocab_size = 4096
    max_positions = 4096
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def hidden(self, tokens, positions, attend):
        self.sizes.append(len(tokens))
        return tokens[:, None].float()

    def logits(self, hidden):
        return torch.nn.functional.one_hot(
            (hidden[:, 0].long() + 1) % self.vocab_size, self.vocab_size
        ).float()


class Gated:
    """A decoder whose every step waits until it is let through. held: released each time one does;
    let: acquired by it."""

    def __init__(self, decoder) -> None:
        self._decoder = decoder
        self.held, self.let = threading.Semaphore(0), threading.Semaphore(0)

    def __getattr__(self, name: str):
        return getattr(self._decoder, name)

    def hidden(self, tokens, positions, attend):
        self.held.release()
        self.let.acquire()
        return self._decoder.hidden(tokens, positions, attend)

    def open(self) -> None:
        """Let everything through from now on."""
        self.let.release(10**6)


def small_engine(decoder, *, extents: int = 0, pages: int = 0, **config: object) -> Engine:
    """An engine with pools of so many units (0: as SMALL says)."""
    section = replace(SMALL, **config)  # type: ignore[arg-type]
    plan = Engine(decoder, section).plan
    sizes = {name: n for name, n in (("extents", extents), ("pages", pages)) if n}
    return Engine(decoder, section, plan=replace(plan, **sizes))
