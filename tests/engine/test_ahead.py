"""Running one step ahead changes when the host learns of a token, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from preread.engine.engine import Engine
from preread.tokens.batch import ChooseSpec, GenerateSpec, LikelihoodSpec, Matcher
from preread.tokens.labels import label_trie
from preread.types import Sampling
from tests.engine.helpers import SMALL, Answers, Echo, batch, drain, greedy

PREFIX = list(range(40, 75))
OWN = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9], [3, 2], [2, 3, 8, 4]]


def both(decoder, submit, **changes: object) -> list[list[Answers]]:
    """What engines with and without a step in flight answer."""
    made = []
    for ahead in (False, True):
        engine = Engine(decoder, replace(SMALL, **changes), ahead=ahead)
        made.append(drain(engine, *submit(engine)))
        assert engine.pages.free == engine.pages.total
    return made


def same(a: Answers, b: Answers) -> None:
    assert (a.tokens, a.finish, a.usage, a.errors) == (b.tokens, b.finish, b.usage, b.errors)
    assert a.logprobs.keys() == b.logprobs.keys() and a.agree == b.agree
    for row, values in a.scores.items():
        np.testing.assert_allclose(values, b.scores[row], atol=1e-5)
    for row, logprobs in a.logprobs.items():
        np.testing.assert_allclose(logprobs, b.logprobs[row], atol=1e-5)


@pytest.mark.parametrize("most", [3, 32])
def test_every_kind_at_once(decoder, most):
    """Answers that end early, at their length, by the dice, and rows that only read."""
    hot = GenerateSpec(12, Sampling(0.9, 0.95, 40), logprobs=True)

    def submit(engine: Engine) -> list[int]:
        seeds = list(range(5))
        return [
            engine.submit(batch(OWN, greedy(9, eos=tuple(range(0, 320, 5))), prefixes=[PREFIX])),
            engine.submit(batch(OWN, hot, prefixes=[PREFIX], seeds=seeds)),
            engine.submit(batch(OWN, ChooseSpec(label_trie([[1, 2], [3]])), prefixes=[PREFIX])),
            engine.submit(batch(OWN, LikelihoodSpec(np.ones(5, np.int32)), prefixes=[PREFIX])),
            engine.submit(batch(OWN, greedy(1))),
        ]

    one, two = both(decoder, submit, max_sequences=most, batch_tokens=40)
    for a, b in zip(one, two, strict=True):
        same(a, b)


def test_rows_whose_memory_is_taken(decoder):
    """What was in flight is settled before a row gives its pages up: its last token is needed."""

    def submit(engine: Engine) -> list[int]:
        return [engine.submit(batch([PREFIX[:9]] * 5, greedy(40)))]

    plan = replace(Engine(decoder, SMALL).plan, pages=30)
    made = []
    for ahead in (False, True):
        engine = Engine(decoder, SMALL, plan=plan, ahead=ahead)
        made += drain(engine, *submit(engine))
        assert engine.metrics.snapshot()["engine.preempted"] > 0
    same(*made)


class Even(Matcher):
    """A grammar of even tokens that must see each before it allows the next."""

    error = ""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def mask(self):
        allowed = np.zeros(320, bool)
        allowed[(2 * len(self.seen)) % 320 : (2 * len(self.seen)) % 320 + 2] = True
        return allowed

    def accept(self, token: int) -> bool:
        self.seen.append(token)
        return len(self.seen) == 6


class Grammar:
    def start(self) -> Matcher:
        return Even()


def test_a_grammar_is_never_behind(decoder):
    def submit(engine: Engine) -> list[int]:
        free = engine.submit(batch(OWN, greedy(9), prefixes=[PREFIX]))
        return [free, engine.submit(batch(OWN, greedy(9, grammar=Grammar()), prefixes=[PREFIX]))]

    one, two = both(decoder, submit)
    for a, b in zip(one, two, strict=True):
        same(a, b)
    assert all(t // 2 == i for row in two[1].rows() for i, t in enumerate(row))


def test_a_row_that_ends_while_its_next_token_is_under_way(decoder):
    """Ended by its reader or cancelled: what comes later is nobody's, also when the slot is."""
    engine = Engine(decoder, replace(SMALL, max_sequences=2), ahead=True)
    job = engine.submit(batch(OWN[:2], greedy(20), prefixes=[PREFIX]))
    for _ in range(5):
        engine.step()
    engine.finish(job, 0)
    engine.cancel(job, np.array([1]))
    later = engine.submit(batch(OWN[2:4], greedy(7), prefixes=[PREFIX]))
    (got,) = drain(engine, later)
    plain = Engine(decoder, SMALL, ahead=False)
    (want,) = drain(plain, plain.submit(batch(OWN[2:4], greedy(7), prefixes=[PREFIX])))
    assert got.tokens == want.tokens and got.finish == want.finish


def test_a_prefix_is_ready_when_its_tokens_are_computed_not_when_they_are_launched(decoder):
    """So that the time between two notices is what a step took."""
    engine, told = Engine(decoder, replace(SMALL, prefill_chunk=16), ahead=True), []
    reading = engine.hold(np.arange(40, dtype=np.int32), lambda *state: told.append(state))
    engine.read(reading)
    seen = [(0, 40, 0)] * 2  # it has its place; it is read
    launched = []
    for ready in (16, 32, 40):
        engine.step()
        assert told == seen + launched
        launched.append((ready, 40, ready))
        assert engine.readings.ready(reading) == ready  # the next step may read it
    engine.step()
    assert told == seen + launched and engine.idle


def test_what_a_tier_brings_meanwhile_says_nothing_of_a_step_under_way(decoder):
    """Of whom it concerns or not: a build would take the launch for the step."""
    engine, told, others = Engine(decoder, replace(SMALL, prefill_chunk=16), ahead=True), [], []
    reading = engine.hold(np.arange(40, dtype=np.int32), lambda *state: told.append(state))
    engine.read(reading)
    seen = list(told)
    brought = engine.hold(np.arange(100, 140, dtype=np.int32))
    waits = engine.hold(np.arange(100, 140, dtype=np.int32), lambda *state: others.append(state))
    engine.read(waits)
    assert engine.loading(brought, 40) == 0
    engine.step()
    engine.loaded(brought, 40)
    assert told == seen
    engine.step()
    assert set(told[len(seen) :]) == {(16, 40, 16)}
    assert others[-1] == (40, 40, 0), "it waits for nothing else"
    while not engine.idle:
        engine.step()
    assert told[-1] == (40, 40, 40) and told == sorted(told)


class Raises(Echo):
    """After token t comes t + 1; a step with one token in it fails."""

    def __init__(self, poison: int) -> None:
        super().__init__()
        self.poison = poison

    def hidden(self, tokens, positions, attend):
        if (tokens == self.poison).any():
            raise RuntimeError("poisoned")
        return super().hidden(tokens, positions, attend)


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_step_fails_whose_row_has_ended_meanwhile(waiting):
    """The row's last token ends it; the step that already goes on with it raises."""
    engine = Engine(Raises(106), replace(SMALL, max_sequences=1), ahead=True)
    own = [[100, 101], [200, 201]][: 1 + waiting]
    (got,) = drain(engine, engine.submit(batch(own, greedy(20, eos=(106,)))), failures=True)
    assert got.tokens[0] == [102, 103, 104, 105] and not got.errors
    assert set(got.finish) == set(range(1 + waiting))


def awake(engine: Engine) -> dict[int, Answers]:
    """As the engine's thread runs it: nobody wakes it when it sleeps."""
    got: dict[int, Answers] = {}
    while not engine.idle or engine.has_news:
        assert not engine.stalled, "it sleeps with work left"
        for job, news in engine.step().items():
            got.setdefault(job, Answers()).add(news)
    return got


@pytest.mark.parametrize("pages", [6, 8, 11])
@pytest.mark.parametrize("last", [105, 109, 114])
def test_all_rows_end_while_others_wait_for_their_memory(pages, last):
    plan = replace(Engine(Echo(), SMALL).plan, pages=pages, extents=4)
    engine = Engine(Echo(), SMALL, plan=plan, ahead=True)
    rows, prefixes = [[97, 98, 99, 100]] * 2, (list(range(1, 50)), list(range(60, 110)))
    spec = greedy(16, eos=(last,))
    jobs = [engine.submit(batch([*rows, [1000, 1001, 1002]], spec, prefixes=prefixes[:1]))]
    engine.step()
    engine.step()
    jobs.append(engine.submit(batch([[1000, 1001]], greedy(3), prefixes=prefixes[1:])))
    got = awake(engine)
    assert not got[jobs[0]].errors and not got[jobs[1]].errors
    assert engine.pages.free == engine.pages.total


class BrokenAt(Echo):
    """What it computes of one token is no number, keys and values included."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def hidden(self, tokens, positions, attend):
        x = tokens[:, None, None].float().expand(-1, 1, self.head_dim)
        x = torch.where(tokens[:, None, None] == self.token, torch.nan, x * 1e-3).contiguous()
        attend(0, x, x, x)
        return super().hidden(tokens, positions, attend)


def test_what_nobody_looked_at_does_not_stay_in_a_page(decoder):
    """The end token's KV is computed by the step under way, and never seen to be finite."""
    engine = Engine(BrokenAt(106), replace(SMALL, max_sequences=1), ahead=True)
    job = engine.submit(batch([[100, 101]] * 3, greedy(20, eos=(106,))))
    (got,) = drain(engine, job)
    assert not got.errors
    assert engine.pages.kv.values[:, :, :, : engine.pages._touched].isfinite().all()
