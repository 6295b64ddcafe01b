"""Random arrivals, cancels, forks, holds and failures, checked after every step: nothing leaks, and
what was not cancelled is what a sequential run gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from preread.engine import line
from preread.engine.arena import Arena
from preread.engine.engine import Engine
from preread.engine.kv import KV, At, EightBitKV
from preread.engine.pages import Pages
from preread.kernels.kv import FORMATS
from preread.testing.models import greedy as recomputed
from preread.testing.models import load_decoder, write_tiny_model
from preread.tokens.batch import ChooseSpec, LikelihoodSpec
from preread.tokens.labels import label_trie
from preread.tokens.share import share
from preread.types import Finish
from tests.engine.helpers import SMALL, Answers, Flaky, batch, greedy, run


@pytest.fixture
def poison(monkeypatch):
    """Memory that is given back is overwritten: who still reads it, shows."""
    free, give = Arena.free, Pages.give

    def free_and_poison(self, runs):
        free(self, runs)
        for slot, n in runs:
            spoil(self.kv, slice(slot, slot + n), torch.nan)

    def give_and_poison(self, ids, *, scrub=False):
        give(self, ids, scrub=scrub)
        spoil(self.kv, self.index(ids), 1e4)  # masked keys are read, but must be finite

    monkeypatch.setattr(Arena, "free", free_and_poison)
    monkeypatch.setattr(Pages, "give", give_and_poison)


def spoil(kv: KV, at: At, value: float) -> None:
    if isinstance(kv, EightBitKV):
        kv.values[:, :, :, at], kv.scales[:, :, :, at] = 1, value
    else:
        kv.values[:, :, :, at] = value


ENDS = tuple(range(0, 320, 9))  # tokens that end an answer


def alone(decoder, precision: str, prompts: list[list[int]]) -> list[list[int]]:
    """Six greedy tokens after each, by engines that do nothing else."""
    if precision == "full":
        return recomputed(decoder, prompts, 6)
    engines = (Engine(decoder, SMALL, kv_precision=precision) for _ in prompts)
    return [
        run(e, batch([p], greedy(6)))[0].tokens[0] for e, p in zip(engines, prompts, strict=True)
    ]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(("seed", "extents"), [*((n, 70) for n in range(5)), (5, 26), (6, 26)])
@pytest.mark.usefixtures("poison")
def test_whatever_happens(decoder, seed, extents, ahead, monkeypatch):
    whatever_happens(decoder, seed, extents, ahead, monkeypatch)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.usefixtures("poison")
def test_whatever_happens_in_eight_bits(tmp_path, precision, monkeypatch):
    """In float64, where no value falls to the other side of an edge between two codes."""
    decoder = load_decoder(write_tiny_model(tmp_path / "m", "qwen3"), "float64")
    whatever_happens(decoder, 6, 26, True, monkeypatch, precision)


def whatever_happens(decoder, seed, extents, ahead, monkeypatch, precision="full"):
    """The smaller memory changes hands all the time. ahead: steps are launched before the one
    before has told what it chose."""
    monkeypatch.setattr(line, "PATIENCE", 64 if extents > 26 else 2)
    make = np.random.default_rng(seed)
    flaky = Flaky(decoder)
    plan = replace(Engine(decoder, SMALL).plan, extents=extents, pages=120)
    engine = Engine(
        flaky, replace(SMALL, max_sequences=10, batch_tokens=96), plan=plan, ahead=ahead,
        kv_precision=precision,
    )  # fmt: skip
    books = [make.integers(0, 4, int(n)).tolist() for n in make.integers(20, 300, 5)]
    asked: dict[int, list[list[int]]] = {}
    cancelled: set[tuple[int, int]] = set()
    answers: dict[int, Answers] = {}
    held = []

    def take() -> None:
        for job, news in engine.step().items():
            answers.setdefault(job, Answers()).add(news)

    def submit() -> None:
        n = int(make.integers(1, 6))
        book = books[make.integers(5)][: int(make.integers(1, 300))]
        own = [make.integers(0, 4, int(k)).tolist() for k in make.integers(2, 50, n)]
        kind = make.integers(4)
        if kind == 0:
            engine.submit(
                batch(own, ChooseSpec(label_trie([[1, 2], [3], [1, 1, 0]])), prefixes=[book])
            )
        elif kind == 1:
            engine.submit(batch(own, LikelihoodSpec(np.ones(n, np.int32)), prefixes=[book]))
        else:
            keep, reuse = bool(make.integers(2)), bool(make.integers(4))
            rows = own if kind == 2 else [book + o for o in own]
            prefixes = [book] if kind == 2 and reuse else []
            if not reuse:
                rows = [book + o for o in own]
            b = batch(rows, greedy(6, eos=ENDS), prefixes=prefixes, keep=keep, reuse=reuse)
            asked[engine.submit(share(b, 64))] = [book + o for o in own]

    for _ in range(120):
        move = make.random()
        if move < 0.3:
            submit()
        elif move < 0.36 and asked:
            job = int(make.choice(list(asked)))
            row = int(make.integers(len(asked[job])))
            engine.cancel(job, np.array([row]))
            cancelled.add((job, row))
        elif move < 0.40:
            held.append(engine.hold(np.array(books[make.integers(5)], np.int32)))
        elif move < 0.45 and held:
            engine.release(held.pop(), lease_s=1.0)
        flaky.most = 40 if 0.5 < move < 0.55 else 10**9
        take()
    for reading in held:
        engine.release(reading)
    for _ in range(2000):
        if engine.idle and not engine.has_news:
            break
        take()

    assert engine.idle
    assert engine.pages.free == engine.pages.total
    assert not any(segment.pins for segment in engine.tree.segments)
    wrong = ended = 0
    for job, prompts in asked.items():
        want = alone(decoder, precision, prompts)
        for row, tokens in enumerate(want):
            finish = answers[job].finish[row]
            if finish is Finish.CANCELLED:
                assert (job, row) in cancelled
            else:
                short = next((i for i, t in enumerate(tokens) if t in ENDS), 6)
                assert finish is (Finish.STOP if short < 6 else Finish.LENGTH), answers[job].errors
                wrong += answers[job].tokens.get(row, []) != tokens[:short]
                ended += short < 6
    assert len(asked) > 5
    assert wrong == 0 and ended
