"""Law 1: cached equals uncached, on every road the engine can take. The reference is the same
decoder in float64 (float32 for half precision), recomputing everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from preread.config import EngineSection
from preread.engine.engine import Engine
from preread.engine.parity import judge, observe, parity
from preread.tokens.batch import GenerateSpec
from preread.tokens.parity import Observation
from preread.tokens.share import share
from preread.types import Sampling
from tests.engine.helpers import Flaky, batch, greedy
from tests.parity.conftest import FAMILIES, WIDER, Load

CONFIG = EngineSection(
    prefix_memory_mb=8,
    suffix_memory_mb=4,
    extent_tokens=32,
    page_tokens=8,
    max_sequences=64,
    batch_tokens=512,
    prefill_chunk=96,
    truth_check=True,
)
STEPS = greedy(8)
DTYPES = ("float32", "bfloat16")


class Case:
    """One model in one precision; checks what the engine did against recomputing it."""

    def __init__(self, load: Load, family: str, dtype: str) -> None:
        self.decoder, self.reference = load(family, dtype), load(family, WIDER[dtype])
        self.make = np.random.default_rng(len(family))
        self.exact = dtype == "float32"

    def engine(self, decoder=None, **changes) -> Engine:
        return Engine(decoder or self.decoder, replace(CONFIG, **changes))

    def text(self, n: int) -> list[int]:
        return self.make.integers(0, self.decoder.vocab_size, n).tolist()

    def texts(self, n: int, most: int = 40) -> list[list[int]]:
        return [self.text(int(k)) for k in self.make.integers(1, most, n)]

    def holds(self, seen: list[Observation], what: str) -> None:
        report = judge(seen, self.reference, self.decoder)
        print(f"{what}: {report}")
        assert report.ok, report
        assert report.exempt < (0.01 if self.exact else 0.8) * report.steps


@pytest.fixture(params=[(f, d) for f in FAMILIES for d in DTYPES], ids="-".join)
def case(request: pytest.FixtureRequest, load: Load) -> Case:
    return Case(load, *request.param)


@pytest.fixture(params=DTYPES)
def qwen(request: pytest.FixtureRequest, load: Load) -> Case:
    return Case(load, "qwen3", request.param)


def test_forty_random_prompts_of_every_family(case: Case):
    """200 over the five families, in each precision: cold, resident, and one alone."""
    report = parity(case.engine(), case.reference, prompts=40, prefix=200)
    print(report)
    assert report.ok, report
    assert report.exempt < (0.01 if case.exact else 0.8) * report.steps


def test_half_precision_of_the_other_kind(load: Load):
    case = Case(load, "llama2", "float16")
    report = parity(case.engine(), case.reference, prompts=16)
    assert report.ok, report


def test_after_twenty_shuffled_questions(qwen: Case):
    engine, book, questions = qwen.engine(), qwen.text(300), qwen.texts(20)
    seen = []
    for i in qwen.make.permutation(20).tolist():
        seen += observe(engine, batch([questions[i]], STEPS, prefixes=[book]))
    qwen.holds(seen, "shuffled")


def test_after_edits_with_partial_reuse(qwen: Case):
    engine, book, seen = qwen.engine(), qwen.text(300), []
    for cut in (300, 250, 31, 32, 33, 1, 0, 299):
        edited = book[:cut] + qwen.text(300 - cut)
        seen += observe(engine, batch(qwen.texts(3), STEPS, prefixes=[edited]))
    assert engine.metrics.snapshot()["engine.tokens"] < 8 * 300 + 8 * 3 * 48
    qwen.holds(seen, "edited")


def test_sessions_and_forks(qwen: Case):
    engine, seen = qwen.engine(), []
    history = qwen.text(200)
    for _ in range(4):
        question = qwen.text(12)
        seen += observe(engine, batch([question], STEPS, prefixes=[history], keep=True))
        history = seen[-1].tokens.tolist()
    for cut in (1, 5, 21, 40):
        fork = history[:-cut]
        (one,) = observe(engine, batch([qwen.text(9)], STEPS, prefixes=[fork]))
        seen.append(one)
    qwen.holds(seen, "sessions")


def test_one_alone_is_one_of_many(qwen: Case):
    book, own = qwen.text(150), qwen.texts(48)
    many = observe(qwen.engine(), batch(own, STEPS, prefixes=[book]))
    alone = []
    engine = qwen.engine()
    for question in own[:12]:
        alone += observe(engine, batch([question], STEPS, prefixes=[book]))
    qwen.holds(many + alone, "one and many")
    if qwen.exact:
        for a, b in zip(many, alone, strict=False):
            assert a.tokens.tolist() == b.tokens.tolist()
            torch.testing.assert_close(a.logits, b.logits, atol=2e-4, rtol=2e-4)


def test_several_contexts_in_one_step(case: Case):
    book = case.text(120)
    books = [book, book[:60] + case.text(50), case.text(90), book[:60]]
    which = [i % 5 - 1 for i in range(30)]
    seen = observe(case.engine(), batch(case.texts(30), STEPS, prefixes=books, prefix_of=which))
    case.holds(seen, "mixed")


def test_prompts_that_share_without_saying_so(qwen: Case):
    head, deeper = qwen.text(100), qwen.text(60)
    rows = [head + (deeper if i % 3 else []) + qwen.text(1 + i % 7) for i in range(24)]
    rows += [qwen.text(130), qwen.text(20)]
    seen = observe(qwen.engine(), share(batch(rows, STEPS), 100))
    qwen.holds(seen, "found by itself")


@pytest.mark.parametrize("min_rows", [1, 64])
def test_the_plain_road(qwen: Case, min_rows: int):
    book = qwen.text(50)
    books = [book + qwen.text(20) for _ in range(6)]
    engine = qwen.engine(shared_min_rows=min_rows)
    which = [i % 6 for i in range(12)]
    seen = observe(engine, batch(qwen.texts(12), STEPS, prefixes=books, prefix_of=which))
    qwen.holds(seen, "plain")


def test_preempted_and_resumed(qwen: Case):
    plan = replace(qwen.engine().plan, pages=40)
    engine = Engine(qwen.decoder, CONFIG, plan=plan)
    own = qwen.texts(12, most=30)
    seen = observe(engine, batch(own, greedy(30), prefixes=[qwen.text(100)]))
    assert engine.metrics.snapshot()["engine.preempted"] > 0
    qwen.holds(seen, "preempted")


def test_after_injected_out_of_memory(qwen: Case):
    flaky = Flaky(qwen.decoder, most=60)
    engine = qwen.engine(flaky)
    seen = observe(engine, batch(qwen.texts(24), STEPS, prefixes=[qwen.text(150)]))
    assert flaky.failures > 0
    qwen.holds(seen, "out of memory")


def test_a_seeded_sample_is_the_same_alone_and_in_a_crowd(load: Load):
    qwen = Case(load, "qwen3", "float32")
    spec = GenerateSpec(16, Sampling(temperature=1.0, top_p=0.9))
    book, own = qwen.text(80), qwen.texts(16)
    engine = qwen.engine()
    many = observe(engine, batch(own, spec, prefixes=[book], seeds=[7] * 16))
    for i in (0, 5, 15):
        (one,) = observe(engine, batch([own[i]], spec, prefixes=[book], seeds=[7]))
        assert one.tokens.tolist() == many[i].tokens.tolist()


def test_the_measure_itself_finds_a_wrong_cache(load: Load):
    """Without this, a judge that always says yes would do."""
    case = Case(load, "llama2", "bfloat16")
    engine, book = case.engine(), case.text(100)
    observe(engine, batch([[1]], STEPS, prefixes=[book]))
    engine.arena.kv.values[:, 1, :, :100] *= 1.05
    report = judge(
        observe(engine, batch(case.texts(6), STEPS, prefixes=[book])),
        case.reference,
        case.decoder,
    )
    assert not report.ok
