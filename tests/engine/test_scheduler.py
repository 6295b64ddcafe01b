"""Who comes first, and what a failure lowers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from preread.engine.engine import Engine, is_out_of_memory
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
    tokens = sum((engine.step()[job].tokens >= 0).sum() for _ in range(20))
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
    reading = engine.hold(np.array(bad, np.int32))
    engine.read(reading, lambda *state: seen.append(state))
    drain(engine, failures=True)
    assert "poisoned" in str(reading.error)
    assert seen[-1][0] < len(bad)
    engine.release(reading)
    engine.check()
