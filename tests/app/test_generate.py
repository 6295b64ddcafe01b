"""Plain prompts over the facade: what they share is found, and answers are as one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import preread
from preread.app.prompts import columns
from preread.backend import Ragged
from preread.errors import RequestError
from preread.tokens.ragged import stacked
from preread.types import Completion, Finish

MAKE = np.random.default_rng(11)


def text(n: int) -> list[int]:
    return MAKE.integers(0, 256, n).tolist()


A, B = text(200), text(120)
NESTED = A + text(90)
PROMPTS = [
    NESTED + text(5), B + text(7), A + text(3), text(20), B + text(1), NESTED + text(9), A, B,
    B + text(7)[:2], A, text(1), NESTED + text(2),
]  # fmt: skip


def dictionary_trie(prompts: list[list[int]]) -> int:
    """How many tokens are left to compute when every beginning is computed once; a row's last token
    is always its own. The slow twin of the search."""
    seen: set[tuple[int, ...]] = set()
    tokens = 0
    for prompt in prompts:
        for end in range(1, len(prompt)):
            tokens += (key := tuple(prompt[:end])) not in seen
            seen.add(key)
        tokens += 1
    return tokens


def test_many_prompts_are_answered_as_each_alone(engine: preread.Engine, folder: Path) -> None:
    got = engine.generate(PROMPTS, max_tokens=6, ignore_eos=True)
    with preread.open(str(folder), dtype="float32") as other:
        alone = [other.generate([p], max_tokens=6, ignore_eos=True)[0] for p in PROMPTS]
    assert [a.tokens for a in got] == [a.tokens for a in alone]
    assert [a.text for a in got] == [a.text for a in alone]
    computed = int(got.usage[:, 2].sum())
    least = dictionary_trie(PROMPTS)
    assert least <= computed <= least + 32 * len(PROMPTS), "shared tokens are computed once"
    assert (got.usage[:, 1] + got.usage[:, 2]).tolist() == [len(p) for p in PROMPTS]


def test_one_form_of_prompts_is_as_good_as_another(engine: preread.Engine) -> None:
    rows = [r[:20] for r in PROMPTS if len(r) >= 20]
    matrix = np.array(rows)
    forms = [rows, list(matrix), matrix, matrix.astype(np.int32), stacked(rows),
             Ragged(matrix.ravel(), np.arange(len(rows) + 1) * 20)]  # fmt: skip
    first = engine.generate(rows, max_tokens=3)
    for form in forms:
        given = columns(form)
        assert isinstance(given, Ragged) and given.values.dtype == np.int32
        assert [given.row(i).tolist() for i in range(len(given))] == rows
        assert [a.tokens for a in engine.generate(form, max_tokens=3)] == [a.tokens for a in first]


@pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 2, 1, 3], []])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    with pytest.raises(RequestError, match="offsets"):
        columns(Ragged(np.array([1, 2, 3], np.int32), np.array(offsets, np.int64)))


def test_answers_are_columns_and_a_sequence(engine: preread.Engine) -> None:
    got = engine.generate([[5, 6], [], [7, 8, 9]], max_tokens=4, ignore_eos=True, logprobs=True)
    assert len(got) == 3 and isinstance(got[0], Completion)
    assert got.finish == [Finish.LENGTH, Finish.ERROR, Finish.LENGTH]
    assert list(got.errors) == [1] and got[1].error == got.errors[1]
    assert [got[i] for i in range(3)] == list(got) == got
    assert got[-1] == got[2] and got[:2] == list(got)[:2] and got[::-2] == [got[2], got[0]]
    assert np.diff(got.tokens.offsets).tolist() == [4, 0, 4] == got.usage[:, 3].tolist()
    assert got.logprobs is not None
    assert got[2].logprobs == tuple(got.logprobs[4:].tolist())
    assert got.texts == [a.text for a in got] and got != [got[0]] and got != "abc"
    with pytest.raises(IndexError):
        got[3]
