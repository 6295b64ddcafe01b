"""What fails, fails small: out of memory halves what runs at once, one bad row ends alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preread.engine.engine import Engine
from preread.tokens.batch import ChooseSpec, LikelihoodSpec, Spec
from preread.tokens.labels import label_trie
from preread.types import Finish
from tests.engine.helpers import SMALL, Answers, Flaky, batch, drain, greedy, run

MAKE = np.random.default_rng(8)
ROWS = 16
BOOK = MAKE.integers(0, 256, 70).tolist()
OWN = [MAKE.integers(0, 256, 6 + i % 5).tolist() for i in range(ROWS)]
KINDS: dict[str, Spec] = {
    "generate": greedy(6),
    "choose": ChooseSpec(label_trie([[1, 2, 3], [1, 2, 4], [9], [7, 7]])),
    "loglikelihood": LikelihoodSpec(np.full(ROWS, 3, np.int32)),
}


class Faulty(Flaky):
    """Out of memory with too many rows at the LM head, and always with one token."""

    def __init__(self, decoder, *, heads: int = 10**9, hopeless: int = -1) -> None:
        super().__init__(decoder)
        self.heads, self.hopeless = heads, hopeless

    def hidden(self, tokens, positions, attend):
        if (tokens == self.hopeless).any():
            raise torch.OutOfMemoryError("injected")
        return super().hidden(tokens, positions, attend)

    def logits(self, hidden):
        if len(hidden) > self.heads:
            raise torch.OutOfMemoryError("injected at the head")
        return self._decoder.logits(hidden)


@pytest.fixture(params=KINDS)
def spec(request) -> Spec:
    return KINDS[request.param]


def same(got: Answers, want: Answers, rows=range(ROWS)) -> None:
    """Finished, scores and tokens alike."""
    for row in rows:
        assert got.finish[row] is want.finish[row]
        assert got.tokens.get(row) == want.tokens.get(row)
        np.testing.assert_allclose(got.scores[row], want.scores[row], atol=1e-4)
        assert got.agree[row] == want.agree[row]


@pytest.fixture
def want(decoder, spec) -> Answers:
    """What happens when nothing fails."""
    (want,) = run(Engine(decoder, SMALL), batch(OWN, spec, prefixes=[BOOK]))
    return want


def test_out_of_memory_halves_what_runs_and_goes_on(decoder, spec, want):
    flaky = Flaky(decoder)
    engine = Engine(flaky, SMALL)
    run(engine, batch([[1]], greedy(1), prefixes=[BOOK]))
    flaky.most = 60  # not enough for the questions of sixteen
    engine.submit(batch(OWN, spec, prefixes=[BOOK]))
    answers = Answers()
    limits = [engine._scheduler.limit]
    while not engine.idle:
        for news in engine.step().values():
            answers.add(news)
        limits.append(engine._scheduler.limit)
        assert (engine._seqs.state == 1).sum() <= limits[-1]
    first = next(limit for limit in limits if limit < SMALL.max_sequences)
    assert flaky.failures > 0 and first == ROWS // 2
    assert limits[-1] >= 1 and engine.pages.free == engine.pages.total
    same(answers, want)


@pytest.mark.parametrize("most", [17, 40, 90])
def test_whatever_fits_at_once_the_answers_are_the_same(decoder, spec, want, most):
    flaky = Flaky(decoder, most=most)
    (got,) = run(Engine(flaky, SMALL), batch(OWN, spec, prefixes=[BOOK]), failures=True)
    assert flaky.failures > 0
    same(got, want)
    assert got.usage == want.usage


def test_out_of_memory_at_the_head_is_no_different(decoder, spec, want):
    faulty = Faulty(decoder, heads=9)
    (got,) = run(Engine(faulty, SMALL), batch(OWN, spec, prefixes=[BOOK]), failures=True)
    same(got, want)


@pytest.fixture
def bad(decoder) -> int:
    """A token that no row reads or writes."""
    (got,) = run(Engine(decoder, SMALL), batch(OWN, KINDS["generate"], prefixes=[BOOK]))
    return min(set(range(256, 320)) - {token for row in got.rows() for token in row})


@pytest.mark.parametrize("why", ["raises", "never fits", "not finite"])
def test_one_bad_row_ends_alone(decoder, spec, want, why, bad):
    faulty: Flaky = Faulty(decoder, hopeless=bad if why == "never fits" else -1)
    if why == "raises":
        faulty.poison = bad
    elif why == "not finite":
        faulty = Overflowing(decoder, poison=bad)
    own = [list(tokens) for tokens in OWN]
    own[5][2] = bad
    engine = Engine(faulty, SMALL)
    (got,) = run(engine, batch(own, spec, prefixes=[BOOK]), failures=why != "not finite")
    assert got.finish[5] is Finish.ERROR
    message = {"raises": "poisoned", "never fits": "Out of memory", "not finite": "not finite"}[why]
    assert message in got.errors[5] and list(got.errors) == [5]
    same(got, want, [row for row in range(ROWS) if row != 5])
    assert engine.idle and engine.pages.free == engine.pages.total


class Overflowing(Flaky):
    """Keys of one token are not finite."""

    def hidden(self, tokens, positions, attend):
        bad = (tokens == self.poison)[:, None, None]

        def overflow(layer, q, k, v):
            return attend(layer, q, k.masked_fill(bad, torch.nan), v)

        return self._decoder.hidden(tokens, positions, overflow)


def test_kinds_that_run_together_fail_apart(decoder, bad):
    """A bad row of each kind among many; every other one ends as if they were not there."""
    own = [list(tokens) for tokens in OWN]
    own[3][0] = bad
    engine = Engine(Flaky(decoder, poison=bad), SMALL)
    jobs = [engine.submit(batch(own, spec, prefixes=[BOOK])) for spec in KINDS.values()]
    answers = drain(engine, *jobs, failures=True)
    for got, spec in zip(answers, KINDS.values(), strict=True):
        (want,) = run(Engine(decoder, SMALL), batch(OWN, spec, prefixes=[BOOK]))
        assert list(got.errors) == [3]
        same(got, want, [row for row in range(ROWS) if row != 3])


def test_a_failed_row_says_what_it_used(decoder):
    """It paid for the prefix; the others find it there."""
    flaky = Flaky(decoder)
    engine = Engine(flaky, SMALL)
    job = engine.submit(batch(OWN, greedy(30), prefixes=[BOOK]))
    answers = Answers()
    while not answers.tokens.get(0):
        for news in engine.step().values():
            answers.add(news)
    flaky.poison = answers.tokens[0][-1]
    (rest,) = drain(engine, job, failures=True)
    assert rest.finish[0] is Finish.ERROR and "poisoned" in rest.errors[0]
    assert rest.usage[0] == (70, 0, 70 + len(OWN[0]), 1)


def test_what_was_lowered_rises_again(decoder, spec, want):
    flaky = Flaky(decoder, most=40)
    engine = Engine(flaky, SMALL)
    run(engine, batch(OWN, spec, prefixes=[BOOK]), failures=True)
    scheduler = engine._scheduler
    assert scheduler.limit < SMALL.max_sequences or scheduler.budget < SMALL.batch_tokens
    flaky.most = 10**9
    run(engine, batch([[1]], greedy(64 * 6 + 1)), failures=True)
    assert (scheduler.limit, scheduler.budget) == (SMALL.max_sequences, SMALL.batch_tokens)
    (again,) = run(engine, batch(OWN, spec, prefixes=[BOOK]), failures=True)
    same(again, want)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_shorter_prefix_outlives_a_longer_one_that_fails(decoder, ahead):
    """The chunk that fails begins with what the other needs, and goes on where that ends."""
    bad, book = 319, list(range(37))
    engine = Engine(Flaky(decoder, poison=bad), SMALL, ahead=ahead)
    long = engine.submit(batch([[7]], greedy(2), prefixes=[[*book, bad, *range(20)]]))
    short = engine.submit(batch([[8]], greedy(2), prefixes=[book]))
    one, two = drain(engine, long, short, failures=True)
    plain = Engine(decoder, SMALL)
    (want,) = drain(plain, plain.submit(batch([[8]], greedy(2), prefixes=[book])))
    assert "poisoned" in one.errors[0] and not two.errors
    assert two.tokens == want.tokens
