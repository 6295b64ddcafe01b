"""Many small batches as one: every contract holds, each reader gets its own news."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import numpy as np
import pytest

from preread.backend import Backend, Choose, Generate, Leaving, Ragged, RequestBatch, ResultBatch
from preread.contexts.crowd import Crowd
from preread.contexts.rows import collect
from preread.errors import RequestError
from preread.testing.backend import FakeBackend
from preread.testing.conformance_backend import BackendConformance
from preread.testing.replies import Reply
from preread.types import Prefix

A, B = Prefix("opening: nine"), Prefix("owner: Ann Lee")


class TestConformance(BackendConformance):
    async def open(self) -> Backend:
        return Crowd(FakeBackend())


def echo(prefix: Prefix, question: str) -> str | Reply:
    if question == "fail":
        return Reply("", error="scripted")
    return f"{prefix.system} {question}"


def submitted(backend: FakeBackend) -> list[RequestBatch]:
    return [call.what for call in backend.calls if call.kind == "submit"]


async def ask(crowd: Crowd, *questions: str, prefix: Prefix = A, **options) -> list[str]:
    work = options.pop("work", Generate())
    rows = await collect(crowd, RequestBatch(work, list(questions), (prefix,), **options))
    return [row.error or row.text for row in rows]


async def test_what_comes_at_once_runs_as_one_batch():
    backend = FakeBackend(echo)
    crowd = Crowd(backend)
    got = await asyncio.gather(
        ask(crowd, "one"), ask(crowd, "two", prefix=B), ask(crowd, "three", "four"),
        ask(crowd, "fail", prefix=B), ask(crowd, "five"),
    )  # fmt: skip
    assert got == [
        [f"{A.system} one"], [f"{B.system} two"], [f"{A.system} three", f"{A.system} four"],
        ["scripted"], [f"{A.system} five"],
    ]  # fmt: skip
    (batch,) = submitted(backend)
    assert len(batch) == 6 and set(batch.prefixes) == {A, B}


async def test_other_work_is_another_batch():
    backend = FakeBackend(echo)
    crowd = Crowd(backend)
    await asyncio.gather(
        ask(crowd, "one"), ask(crowd, "one", work=Generate(max_tokens=3)), ask(crowd, "two"),
        ask(crowd, "a", work=Choose(("x", "y"))), ask(crowd, "k", keep=True),
    )  # fmt: skip
    assert sorted(len(batch) for batch in submitted(backend)) == [1, 1, 1, 2]


async def test_token_prompts_are_joined():
    backend = FakeBackend()
    crowd, work = Crowd(backend), Generate(max_tokens=2)
    prompts = [Ragged(np.arange(n, dtype=np.int32), np.array([0, n])) for n in (3, 1, 4)]
    await asyncio.gather(*(collect(crowd, RequestBatch(work, p, raw=True)) for p in prompts))
    (batch,) = submitted(backend)
    assert isinstance(batch.prompts, Ragged) and batch.prompts.offsets.tolist() == [0, 3, 4, 8]


async def test_what_is_malformed_fails_alone():
    crowd = Crowd(FakeBackend(echo))
    bad = RequestBatch(Generate(), ["x"], (A,), np.array([7], np.int32))
    good, wrong = await asyncio.gather(
        ask(crowd, "one"), collect(crowd, bad), return_exceptions=True
    )
    assert good == [f"{A.system} one"] and isinstance(wrong, RequestError)


class Held(FakeBackend):
    """Tells nothing before `go`; `left` are the rows whose readers left."""

    def __init__(self) -> None:
        super().__init__(echo)
        self.go, self.left, self.closed = asyncio.Event(), [], False

    async def submit(self, batch: RequestBatch):
        if isinstance(batch.leaving, Leaving):
            batch.leaving.listen(self.left.append, lambda: None)
        try:
            await self.go.wait()
            async for news in super().submit(batch):
                yield news
        finally:
            self.closed = True


async def test_who_leaves_is_named_and_the_others_stay():
    held = Held()
    crowd = Crowd(held)
    tasks = [asyncio.create_task(ask(crowd, f"q{i}")) for i in range(4)]
    await asyncio.sleep(0.05)
    tasks[2].cancel()
    await asyncio.sleep(0.01)
    assert held.left == [2] and not held.closed
    held.go.set()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert [g for g in got if isinstance(g, list)] == [[f"{A.system} q{i}"] for i in (0, 1, 3)]


async def test_when_all_have_left_the_batch_is_closed():
    held = Held()
    crowd = Crowd(held)
    tasks = [asyncio.create_task(ask(crowd, f"q{i}")) for i in range(3)]
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert held.closed and not crowd._running and not crowd._waiting


async def test_who_leaves_before_it_began_takes_nobody_along():
    backend = FakeBackend(echo)
    crowd = Crowd(backend)
    tasks = [asyncio.create_task(ask(crowd, f"q{i}")) for i in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert got[1:] == [[f"{A.system} q1"], [f"{A.system} q2"]]


@pytest.mark.parametrize("steps", range(5))
async def test_who_comes_when_all_others_have_just_left_is_answered(steps):
    crowd = Crowd(FakeBackend(echo))
    first = asyncio.create_task(ask(crowd, "one"))
    while not crowd._waiting:
        await asyncio.sleep(0)
    first.cancel()
    for _ in range(steps):
        await asyncio.sleep(0)
    assert await ask(crowd, "two") == [f"{A.system} two"]
    assert not crowd._waiting


async def test_a_backend_that_fails_fails_those_who_wait():
    class Broken(FakeBackend):
        async def submit(self, batch):
            raise RuntimeError("broken")
            yield

    crowd = Crowd(Broken())
    got = await asyncio.gather(ask(crowd, "a"), ask(crowd, "b"), return_exceptions=True)
    assert [str(g) for g in got] == ["broken"] * 2


async def test_news_come_as_they_are_told():
    crowd = Crowd(FakeBackend(echo))
    source = crowd.submit(RequestBatch(Generate(), ["some words here"], (A,)))
    async with aclosing(source):
        told = [news async for news in source]
    assert len(told) > 1 and all(isinstance(news, ResultBatch) for news in told)
    assert "".join(news.texts[0] for news in told) == f"{A.system} some words here"


@pytest.mark.parametrize("early", [True, False])
def test_leaving_is_told_whenever_somebody_listens(early):
    leaving, seen = Leaving(), []
    if early:
        leaving.listen(seen.append, lambda: None)
    leaving.leave(3)
    leaving.leave(1)
    leaving.listen(seen.append, lambda: None)
    assert seen == [3, 1]


@pytest.mark.parametrize("early", [True, False])
def test_what_has_not_begun_is_withdrawn_once(early):
    leaving, seen = Leaving(), []
    if not early:
        leaving.withdraw()
    leaving.listen(seen.append, lambda: seen.append("all"))
    leaving.withdraw()
    leaving.withdraw()
    assert seen == ["all"]
