"""What the fit report says."""

from __future__ import annotations

import pytest

from preread.config import ContextSection
from preread.contexts.fit import Fit, capacity, needed
from preread.errors import ContextTooLong
from preread.testing.backend import FakeBackend


def test_the_report_in_one_line() -> None:
    fit = Fit(18_240, 32_768, 24_000, True, 768, 1, 18_240)
    assert fit.room == 5_760
    assert fit.describe() == (
        "18,240 tokens; limit 32,768, effective 24,000; room for question and answer 5,760"
    )


def test_the_report_of_a_split_context() -> None:
    fit = Fit(50_000, 32_768, 32_768, False, 768, 2, 25_100)
    assert (
        "effective 32,768, not measured; does not fit: 2 shards of at most 25,100" in fit.describe()
    )


def test_question_and_answer_have_their_room() -> None:
    config = ContextSection(answer_room=100, max_tokens=50)
    assert needed(config) == 150
    assert capacity(FakeBackend(limit=1000, effective_limit=400).info, config) == 250
    with pytest.raises(ContextTooLong, match="reads 150 tokens, and 150 are kept"):
        capacity(FakeBackend(limit=150).info, config)
