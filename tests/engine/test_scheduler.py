"""Who comes first, and what a failure lowers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from preread.engine.engine import Engine
from preread.engine.failing import is_out_of_memory
from preread.tokens.batch import ChooseSpec
from preread.tokens.labels import label_trie
from preread.types import Finish
from tests.engine.helpers import SMALL, Flaky, batch, drain, greedy, run

MAKE = np.random.default_rng(3)


def text(n: int) -> list[int]:
    return MAKE.integers(0, 256, n).tolist()


def test_a_small_job_is_not_stuck_behind_a_large_one(decoder):
    engine = Engine(decoder, replace(SMALL, max_sequences=4))
    large = engine.submit(batch([text(5) for _ in range(60)], greedy(5), prefixes=[text(40)]))
    for _ in range(10):
        engine.step()
    small = engine.submit(batch([text(5)], greedy(5), prefixes=[text(40)]))
    steps = 0
    while small not in (news := engine.step()) or not news[small].finish.any():
        steps += 1
    assert steps < 25
    drain(engine, large)


def test_a_resident_prefix_overtakes_cold_ones(decoder):
    engine = Engine(decoder, replace(SMALL, prefill_chunk=8, batch_tokens=16))
    book = text(60)
    run(engine, batch([text(3)], greedy(1), prefixes=[book]))
    cold = [engine.submit(batch([text(3)], greedy(1), prefixes=[text(300)])) for _ in range(8)]
    engine.step()
    warm = engine.submit(batch([text(3)], greedy(1), prefixes=[book]))
    assert warm in engine.step()
    drain(engine, *cold)


def test_decoding_goes_on_while_a_prefix_is_read(decoder):
    engine = Engine(decoder, replace(SMALL, prefill_chunk=8, batch_tokens=16))
    job = engine.submit(batch([text(4)], greedy(30)))
    engine.step()
    other = engine.submit(batch([text(4)], greedy(2), prefixes=[text(200)]))
    tokens = sum(len(engine.step()[job].tokens.values) for _ in range(20))
    assert tokens == 20
    drain(engine, job, other)


def test_limits_rise_again_after_good_steps(decoder):
    flaky = Flaky(decoder, most=20)
    engine = Engine(flaky, SMALL)
    scheduler = engine._scheduler
    run(engine, batch([text(9) for _ in range(8)], greedy(4)), failures=True)
    assert scheduler.budget < SMALL.batch_tokens
    flaky.most = 10**9
    for _ in range(12):
        run(engine, batch([text(3)], greedy(30)), failures=True)
    assert (scheduler.budget, scheduler.limit) == (SMALL.batch_tokens, SMALL.max_sequences)


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, short):
    assert is_out_of_memory(error) is short


def test_a_prefix_that_cannot_be_computed_fails_those_who_want_it(decoder):
    engine = Engine(Flaky(decoder, poison=300), SMALL)
    bad = [*text(20), 300, *text(20)]
    (got,) = run(
        engine, batch([[1], [2], [3]], prefixes=[bad, text(30)], prefix_of=[0, 1, 0]), failures=True
    )
    assert sorted(got.errors) == [0, 2] and "poisoned" in got.errors[0]
    seen = []
    reading = engine.hold(np.array(bad, np.int32), lambda *state: seen.append(state))
    engine.read(reading)
    drain(engine, failures=True)
    assert "poisoned" in str(reading.error)
    assert seen[-1][0] < len(bad)
    engine.release(reading)
    engine.check()


def test_jobs_that_come_at_once_share_the_pages(decoder):
    engine = Engine(decoder, SMALL, plan=replace(Engine(decoder, SMALL).plan, pages=20))
    answers = run(engine, *(batch([text(60)], greedy(4)) for _ in range(2)))
    assert [a.finish for a in answers] == [{0: Finish.LENGTH}] * 2


def test_a_prefix_waits_for_memory_that_a_finished_build_still_holds(decoder):
    engine = Engine(decoder, SMALL, plan=replace(Engine(decoder, SMALL).plan, extents=8))
    reading = engine.hold(np.array(text(100), np.int32))
    engine.read(reading)
    engine.step()
    job = engine.submit(batch([[1]], greedy(2), prefixes=[text(100)]))
    assert not any(engine.step() for _ in range(5))  # it is being saved
    engine.release(reading)
    assert drain(engine, job)[0].finish == {0: Finish.LENGTH}


def test_small_prefixes_fail_one_by_one(decoder):
    engine = Engine(Flaky(decoder, poison=300), SMALL)
    prefixes = [text(8), [300, *text(7)]]
    rows = batch([[1], [2]], greedy(1), prefixes=prefixes, prefix_of=[0, 1])
    (got,) = run(engine, rows, failures=True)
    assert got.finish == {0: Finish.LENGTH, 1: Finish.ERROR}


@pytest.mark.parametrize("spec", [greedy(1), ChooseSpec(label_trie([[1], [2, 3]]))])
def test_a_row_that_may_need_more_pages_than_there_are_is_refused(decoder, spec):
    flaky = Flaky(decoder, most=30)  # it is read in parts, so that it needs pages
    engine = Engine(flaky, SMALL, plan=replace(Engine(decoder, SMALL).plan, pages=5))
    (got,) = run(engine, batch([text(60)], spec))
    assert "out of memory" in got.errors[0]


def test_labels_do_not_reach_beyond_the_last_position(decoder):
    engine = Engine(decoder, replace(SMALL, batch_tokens=4096))
    labels = ChooseSpec(label_trie([[1, 2, 3], [2]]))
    (got,) = run(
        engine,
        batch([[5], [6, 7]], labels, prefixes=[text(decoder.max_positions - 3)], prefix_of=[0, 0]),
    )
    assert got.finish == {0: Finish.STOP, 1: Finish.ERROR}


def test_whoever_computes_a_prefix_is_told_when_a_tier_delivers_it(decoder):
    engine, tokens, seen = Engine(decoder, SMALL), np.array(text(100), np.int32), []
    one = engine.hold(tokens, lambda *state: seen.append(state))
    other = engine.hold(tokens)
    engine.read(one)
    assert engine.loading(other, 100) == 0
    engine.step()
    engine.loaded(other, 100)
    assert engine.idle and seen == [(0, 100, False)] * 2 + [(100, 100, False)]
    assert engine.loading(other, 100) == 100


@pytest.mark.parametrize("how", ["cancelled", "preempted"])
def test_pages_of_a_row_that_overflowed_poison_nobody(decoder, how):
    class Overflowing(Flaky):
        def hidden(self, tokens, positions, attend):
            bad = (tokens == self.poison)[:, None, None]

            def overflow(layer, q, k, v):
                return attend(layer, q, k.masked_fill(bad, torch.nan), v)

            return self._decoder.hidden(tokens, positions, overflow)

    engine = Engine(Overflowing(decoder, poison=300), replace(SMALL, batch_tokens=24))
    job = engine.submit(batch([[300] * 40], greedy(1)))
    engine.step()  # half of it is read
    if how == "preempted":
        engine._scheduler.park(int(engine._seqs.running[0]))
    after = engine.submit(batch([[1, 2, 3], [5] * 9], greedy(6)))
    if how == "cancelled":
        engine.cancel(job)
    overflowed, others = drain(engine, job, after)
    assert overflowed.finish[0] is (Finish.CANCELLED if how == "cancelled" else Finish.ERROR)
    assert others.finish == {0: Finish.LENGTH, 1: Finish.LENGTH}


@pytest.mark.parametrize("big", ["row", "prefix"])
def test_what_needs_much_memory_is_not_overtaken_for_ever(decoder, big):
    plan = replace(Engine(decoder, SMALL).plan, pages=34, extents=20)
    engine, running, wanted = Engine(decoder, SMALL, plan=plan), set(), -1
    own, prefix = (text(100), text(20)) if big == "row" else (text(3), text(280))
    for step in range(150):
        while len(running) < 8:  # a small question always waits
            answer = greedy(3 + (step + len(running)) % 11)
            running.add(engine.submit(batch([text(12)], answer, prefixes=[text(20)])))
        if step == 20:
            wanted = engine.submit(batch([own], greedy(5), prefixes=[prefix]))
        ended = {job for job, news in engine.step().items() if news.finish.any()}
        running -= ended
        if wanted in ended:
            break
    assert wanted in ended
