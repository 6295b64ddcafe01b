from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from preread.capacity.roofline import Load
from preread.capacity.trial import context_tokens, questions, run_trial
from preread.errors import EngineError
from preread.testing.backend import FakeBackend
from preread.testing.replies import Reply

LOAD = Load(context=40, question=6, output=5)


def test_questions_share_the_context_and_nothing_else() -> None:
    prompts = questions(LOAD, 500, 8, seed=1)
    again, other = questions(LOAD, 500, 8, seed=1), questions(LOAD, 500, 8, seed=2)
    assert len(prompts) == 8
    assert all((prompts.row(i)[:40] == context_tokens(LOAD, 500)).all() for i in range(8))
    assert len({int(p.row(i)[40]) for p in (prompts, other) for i in range(8)}) == 16
    assert np.array_equal(prompts.values, again.values)
    assert prompts.values.min() >= 0 and prompts.values.max() < 500


@pytest.mark.parametrize("load", [Load(0, 0, 6, 5), Load(40, 1, 1, 1)])
def test_no_context_and_one_token_are_possible(load: Load) -> None:
    prompts = questions(load, 300, 3, seed=1)
    assert [len(prompts.row(i)) for i in range(3)] == [load.context + load.question] * 3


async def test_a_trial_counts_requests_tokens_and_time() -> None:
    ticks: Iterator[float] = iter((10.0, 12.0))
    sample = await run_trial(
        FakeBackend(), questions(LOAD, 500, 4, seed=1), 5, clock=lambda: next(ticks)
    )
    assert (sample.sequences, sample.seconds, sample.requests_per_s) == (4, 2.0, 2.0)
    assert (sample.output_tokens, sample.tokens_per_s) == (5, 10.0)
    assert 0 < sample.first_token_s < sample.request_s <= sample.request_p95_s


async def test_the_peak_is_beyond_what_was_taken_before() -> None:
    taken = iter((100, 130, 190, 120))
    sample = await run_trial(
        FakeBackend(), questions(LOAD, 500, 2, seed=1), 3, used=lambda: next(taken, 120)
    )
    assert sample.peak == 90


async def test_a_failed_request_fails_the_trial() -> None:
    backend = FakeBackend(lambda prefix, question: Reply("", error="no memory left"))
    with pytest.raises(EngineError, match="no memory left"):
        await run_trial(backend, questions(LOAD, 500, 2, seed=1), 3)
