"""A backend with the response cache in front says what it says without it, and says less often."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import preread
from preread.backend import Choose, Generate, Leaving, LogLikelihood, RequestBatch, ResultBatch
from preread.contexts.rows import collect, gather
from preread.responses.book import Book
from preread.responses.cache import Cached
from preread.responses.keys import keys
from preread.testing.backend import FakeBackend
from preread.testing.models import write_tiny_model
from preread.testing.replies import Reply
from preread.tokens.requests import check
from preread.types import CachedResponse, Finish, Message, Prefix, Sampling

T = TypeVar("T")
HEAD = Prefix("the rules are long and the same for all")
OTHER = Prefix("other rules")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def cached(path: Path, backend: Any) -> Cached:
    return Cached(backend, Book.open(path / "r.sqlite", most=1 << 24, age_s=1e9))


def submits(backend: FakeBackend) -> list[RequestBatch]:
    return [call.what for call in backend.calls if call.kind == "submit"]


def equal(one: ResultBatch, two: ResultBatch, *, within: float = 0.0) -> None:
    """Everything that is an answer. within: of values that were computed twice."""
    assert one.texts == two.texts and one.finish == two.finish and one.errors == two.errors
    assert np.array_equal(one.tokens.values, two.tokens.values)
    assert np.array_equal(one.tokens.offsets, two.tokens.offsets)
    assert one.is_greedy == two.is_greedy
    for name in ("logprobs", "label_probs", "mass"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None) and (
            a is None or np.allclose(a, b, rtol=within, atol=within)
        ), name


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[preread.Engine]:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_model(path, "qwen3", seed=1)
    with preread.open(str(path), home=path / "home") as made:
        yield made


WORKS = [
    Generate(max_tokens=5),
    Generate(max_tokens=5, logprobs=True),
    Generate(max_tokens=4, sampling=Sampling(temperature=1.0, seed=7)),
    Choose(("yes", "no", "maybe")),
    LogLikelihood([f"tail {i}" for i in range(6)]),
]


@pytest.mark.parametrize("work", WORKS, ids=lambda work: type(work).__name__)
def test_the_same_as_without(engine: preread.Engine, tmp_path: Path, work: Any) -> None:
    texts = [f"question {i}" for i in range(6)]
    of = np.array([0, 1, -1, 0, 1, -1], np.int32)
    batch = RequestBatch(work, texts, (HEAD, OTHER), of)
    slow = engine.run(gather(engine.backend, batch))
    front = cached(tmp_path, engine.backend)
    first = engine.run(gather(front, batch))
    again = engine.run(gather(front, batch))
    equal(first, slow, within=1e-4)  # there the prefix was read, here it was in memory
    equal(again, first)
    assert not first.responses and first.usage[:, 1:3].sum() > 0
    assert again.responses == dict.fromkeys(range(6), CachedResponse()) and not again.usage.any()


def test_part_of_a_batch(tmp_path: Path) -> None:
    backend = FakeBackend(lambda prefix, text: Reply(f"re {text}"))
    front = cached(tmp_path, backend)
    run(collect(front, RequestBatch(Generate(), ["b", "d"], (HEAD,))))
    rows = run(collect(front, RequestBatch(Generate(), list("abcd"), (HEAD,))))
    assert [row.text for row in rows] == ["re a", "re b", "re c", "re d"]
    assert [row.response is not None for row in rows] == [False, True, False, True]
    assert list(submits(backend)[-1].prompts) == ["a", "c"]
    assert rows[1].completion().cached_response == CachedResponse()
    assert rows[1].usage == preread.types.Usage() and rows[0].usage.computed_tokens > 0


def test_every_part_of_a_request_counts() -> None:
    info = FakeBackend().info
    plain = RequestBatch(Generate(), ["a"], (HEAD,))
    others = [
        RequestBatch(Generate(), ["b"], (HEAD,)),
        RequestBatch(Generate(), ["a"], (OTHER,)),
        RequestBatch(Generate(), ["a"]),
        RequestBatch(Generate(), ["a"], raw=True),
        RequestBatch(Generate(), ["a"], (Prefix(HEAD.system, (Message("user", "x"),)),)),
        RequestBatch(Generate(max_tokens=7), ["a"], (HEAD,)),
        RequestBatch(Generate(stop=("x",)), ["a"], (HEAD,)),
        RequestBatch(Generate(sampling=Sampling(seed=1)), ["a"], (HEAD,)),
        RequestBatch(Generate(schema={"type": "object"}), ["a"], (HEAD,)),
        RequestBatch(Choose(("x", "y")), ["a"], (HEAD,)),
        RequestBatch(Choose(("y", "x")), ["a"], (HEAD,)),
        RequestBatch(LogLikelihood(["x"]), ["a"], (HEAD,)),
        RequestBatch(LogLikelihood(["y"]), ["a"], (HEAD,)),
    ]
    every = [keys(info, batch, check(batch))[0] for batch in (plain, *others)]
    every += keys(FakeBackend(fingerprint="fb" * 32).info, plain, check(plain))
    assert len(set(every)) == len(every)
    assert keys(info, plain, check(plain), "another template") != every[:1]
    turned = RequestBatch(Generate(), ["b", "a"], (OTHER, HEAD), np.array([0, 1], np.int32))
    assert keys(info, turned, check(turned))[1] == every[0]  # wherever it stands


@pytest.mark.parametrize(
    "options",
    [
        {"work": Generate(sampling=Sampling(temperature=0.7))},
        {"keep": True},
        {"reuse": False},
    ],
)
def test_what_may_differ_each_time_is_passed_on(tmp_path: Path, options: dict[str, Any]) -> None:
    backend = FakeBackend(lambda prefix, text: Reply("x"))
    front = cached(tmp_path, backend)
    batch = RequestBatch(**{"work": Generate(), "prompts": ["a"], "prefixes": (HEAD,)} | options)
    for _ in range(2):
        (row,) = run(collect(front, batch))
        assert row.response is None and row.usage.computed_tokens > 0
    assert len(submits(backend)) == 2


def test_a_failed_row_is_asked_again(tmp_path: Path) -> None:
    broken = FakeBackend(lambda prefix, text: Reply("", error="no") if text == "b" else Reply("x"))
    rows = run(collect(cached(tmp_path, broken), RequestBatch(Generate(), ["a", "b"], (HEAD,))))
    assert rows[1].error == "no"
    front = cached(tmp_path, FakeBackend(lambda prefix, text: Reply("x")))
    rows = run(collect(front, RequestBatch(Generate(), ["a", "b"], (HEAD,))))
    assert [bool(row.response) for row in rows] == [True, False] and rows[1].text == "x"


def test_who_leaves_early_is_told_by_its_own_number(tmp_path: Path) -> None:
    backend = FakeBackend(lambda prefix, text: Reply("x"))
    front = cached(tmp_path, backend)
    run(collect(front, RequestBatch(Generate(), ["a"], (HEAD,))))
    leaving = Leaving()
    batch = RequestBatch(Generate(), ["a", "b", "c"], (HEAD,), leaving=leaving)
    run(collect(front, batch))
    inner = submits(backend)[-1].leaving
    told: list[int] = []
    assert inner is not None
    inner.listen(told.append, lambda: told.append(-1))
    for row in range(3):
        leaving.leave(row)
    leaving.withdraw()
    assert told == [0, 1, -1]  # rows b and c, as the backend knows them; then all that waits


def test_stopping_in_the_middle_keeps_what_has_ended(tmp_path: Path) -> None:
    def answer(prefix: Prefix, text: str) -> Reply:
        return Reply("one" if text == "a" else "one two three four")

    front = cached(tmp_path, FakeBackend(answer))

    async def some() -> None:
        stream = front.submit(RequestBatch(Generate(), ["a", "b"], (HEAD,)))
        async for news in stream:
            if Finish.STOP in news.finish:
                break
        await stream.aclose()

    run(some())
    rows = run(collect(front, RequestBatch(Generate(), ["a", "b"], (HEAD,))))
    assert [bool(row.response) for row in rows] == [True, False]


def test_what_is_no_text_is_the_backends_to_refuse(tmp_path: Path, engine: preread.Engine) -> None:
    batch = RequestBatch(Generate(max_tokens=2), ["a", "b\ud800"], (HEAD,))
    slow = engine.run(gather(engine.backend, batch))
    equal(engine.run(gather(cached(tmp_path, engine.backend), batch)), slow, within=1e-4)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_another_template_or_other_stops_are_another_model(tmp_path: Path, name: str) -> None:
    """Their KV is the same, so their fingerprint is; what they say is not."""
    write_tiny_model(tmp_path, "qwen3", seed=1)
    seen = []
    for change in (False, False, True):
        if change:
            file = tmp_path / name
            value = json.loads(file.read_text()) if file.exists() else {}
            file.write_text(json.dumps(value | {"max_length": 77}))
        with preread.open(str(tmp_path), home=tmp_path / "home", responses=True) as made:
            answer = made.generate("Open at", max_tokens=2)
            seen.append((made.info.fingerprint, answer.cached_response is not None))
    assert [kept for _, kept in seen] == [False, True, False]
    assert len({fingerprint for fingerprint, _ in seen}) == 1


def test_the_engine_with_it(tmp_path: Path, engine: preread.Engine) -> None:
    home, model = tmp_path / "home", engine.info.model
    (tmp_path / "d.md").write_text("# Shop\nOpen at nine.\n")
    said = []
    for _ in range(2):
        with preread.open(model, home=home, responses=True) as made:
            shop = made.context("shop", tmp_path / "d.md")
            answer, choice = shop.ask("When?", max_tokens=4), shop.choose("Open?", ["yes", "no"])
            likely = made.loglikelihood("Open at", " nine")
            said.append((answer.text, choice.probabilities, likely.logprob))
    assert said[0] == said[1]
    for result in (answer, choice, likely):
        assert result.cached_response == CachedResponse()
        assert result.usage == preread.types.Usage()
    assert engine.generate("x", max_tokens=2).cached_response is None  # off unless asked for
