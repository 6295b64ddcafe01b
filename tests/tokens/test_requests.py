"""A batch becomes parts: the same whether it is encoded at once or some rows at a time."""

from __future__ import annotations

import numpy as np
import pytest

from preread.backend import Choose, Generate, LogLikelihood, RequestBatch
from preread.errors import RequestError
from preread.models.folder import resolve
from preread.models.text import Text, load_text
from preread.tokens import requests
from preread.tokens.batch import LikelihoodSpec, TokenBatch
from preread.tokens.requests import Requests
from preread.types import Prefix, Sampling

BOOKS = (Prefix("The fox is quick."), Prefix("The dog is lazy.\n\nIt sleeps."))
QUESTIONS = [
    "Who?",
    "Is it\nlazy?",
    "a \ud800 b",
    "",
    "Where is the fox?",
    "x",
    "Who?",
    "<|im_end|>",
]
WORKS = [
    Generate(max_tokens=3),
    Choose(("yes", "no", "not stated")),
    LogLikelihood([" the fox", "a", "b", "", "lazy", " x y", "dog", "\ud800"]),
]


@pytest.fixture(scope="module")
def text() -> Text:
    return load_text(resolve("reader", weights=False))


def prompts(batch: TokenBatch) -> list[list[int]]:
    return [[*batch.head(i).tolist(), *batch.own.row(i).tolist()] for i in range(len(batch))]


def told(blocks) -> tuple[dict[int, tuple], dict[int, str]]:
    """Of every row: its prompt, what of it is shared at most, how much of it is a target."""
    rows, errors = {}, {}
    for parts, failed in blocks:
        errors |= failed
        for part in parts:
            spec = part.batch.spec
            for i, row in enumerate(part.rows.tolist()):
                tail = int(spec.counts[i]) if isinstance(spec, LikelihoodSpec) else 0
                prefix = [] if part.prefix is None else part.prefix.tolist()
                rows[row] = (prompts(part.batch)[i], prefix, int(part.batch.context[i]), tail)
    return rows, errors


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("work", WORKS, ids=["generate", "choose", "loglikelihood"])
def test_blocks_are_the_batch(text, monkeypatch, work, raw):
    make = Requests(text, 1 << 20, frozenset({0}), 512)
    batch = RequestBatch(
        work,
        QUESTIONS,
        () if raw else BOOKS,
        None if raw else np.array([0, 1, 0, 1, -1, 0, 1, 0], np.int32),
        raw=raw,
    )
    rows, errors = told([make.parts(batch)])
    assert sorted([*rows, *errors]) == list(range(len(QUESTIONS))) and 2 in errors
    for size in (1, 3):
        monkeypatch.setattr(requests, "BLOCK", size)
        blocks = list(make.blocks(batch))
        assert len(blocks) == -(-len(QUESTIONS) // size)
        assert told(blocks) == (rows, errors)


def test_an_empty_batch_is_a_block(text):
    make = Requests(text, 1 << 20, frozenset(), 512)
    assert list(make.blocks(RequestBatch(WORKS[0], []))) == [([], {})]


@pytest.mark.parametrize(
    "work",
    [
        Generate(2**31),
        Generate(4, Sampling(top_k=2**63)),
        Generate(4, Sampling(temperature=1.0, seed=2**70)),
        Generate(4, Sampling(temperature=float("nan"))),
    ],
)
def test_numbers_that_no_column_holds_are_refused(text, work):
    """They would end the engine, and everybody's rows with it."""
    make = Requests(text, 1 << 20, frozenset({0}), 512)
    with pytest.raises(RequestError, match="below 2"):
        make.parts(RequestBatch(work, ["a"]))
