"""The async view of an engine: from several event loops and threads at once."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

import preread
from preread.errors import EngineError, RequestError, UnknownName
from preread.types import Completion, Finish


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "a.md").write_text("warranty: 24 months\ncolour: blue\n" * 8)
    return tmp_path / "a.md"


QUESTIONS = [f"What about {word}?" for word in ("warranty", "colour", "price", "size", "weight")]


def test_answers_are_those_of_the_sync_facade(engine: preread.Engine, docs: Path) -> None:
    want = engine.context("hb", docs).ask_many(QUESTIONS, max_tokens=6)

    async def main() -> list[Completion]:
        return await asyncio.gather(
            *(engine.aio.ask("hb", question, max_tokens=6) for question in QUESTIONS)
        )

    got = asyncio.run(main())
    assert [a.tokens for a in got] == [a.tokens for a in want]
    assert [a.text for a in got] == [a.text for a in want]


def test_several_loops_in_several_threads(engine: preread.Engine, docs: Path) -> None:
    handbook = engine.context("hb", docs)
    want = {q: handbook.ask(q, max_tokens=5).tokens for q in QUESTIONS}
    wrong: list[object] = []

    async def main() -> None:
        context = await engine.aio.context("hb")
        for _ in range(3):
            got = await asyncio.gather(*(context.ask(q, max_tokens=5) for q in QUESTIONS))
            wrong.extend(a for q, a in zip(QUESTIONS, got, strict=True) if a.tokens != want[q])

    def sync() -> None:
        for q in QUESTIONS:
            if handbook.ask(q, max_tokens=5).tokens != want[q]:
                wrong.append(q)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(3)]
    threads += [threading.Thread(target=sync) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def test_one_fails_alone(engine: preread.Engine) -> None:
    async def main() -> list[Completion | BaseException]:
        return await asyncio.gather(
            engine.aio.generate("Once upon", max_tokens=3, ignore_eos=True),
            engine.aio.generate("a \ud800 b", max_tokens=3, ignore_eos=True),
            engine.aio.generate("There was", max_tokens=3, ignore_eos=True),
            engine.aio.generate("x", max_tokens=-1),
            return_exceptions=True,
        )

    first, bad, third, malformed = asyncio.run(main())
    assert isinstance(first, Completion) and isinstance(third, Completion)
    assert [first.finish_reason, third.finish_reason] == [Finish.LENGTH] * 2
    assert isinstance(bad, Completion) and "surrogate" in bad.error
    assert isinstance(malformed, RequestError)


def test_answers_come_as_they_end(engine: preread.Engine, docs: Path) -> None:
    engine.context("hb", docs)

    async def main() -> list[int]:
        sizes = (40, 2, 20)
        asks = [engine.aio.ask("hb", "x", max_tokens=n, ignore_eos=True) for n in sizes]
        return [len((await done).tokens) for done in asyncio.as_completed(asks)]

    assert asyncio.run(main()) == [2, 20, 40]


def test_cancelling_frees_the_row_at_once(engine: preread.Engine, docs: Path) -> None:
    engine.context("hb", docs)
    core = engine.backend._thread._engine  # type: ignore[attr-defined]

    async def main() -> Completion:
        long = [
            asyncio.create_task(
                engine.aio.ask("hb", f"question {i}", max_tokens=300, ignore_eos=True)
            )
            for i in range(3)
        ]
        while (core._seqs.state != 0).sum() < 3:
            await asyncio.sleep(0.001)
        for task in long[:2]:
            task.cancel()
        while (core._seqs.state != 0).sum() > 1:
            await asyncio.sleep(0.001)
        return await long[2]

    assert len(asyncio.run(asyncio.wait_for(main(), 60)).tokens) == 300
    assert core.pages.free == core.pages.total


def test_a_stream_is_the_answer(engine: preread.Engine, docs: Path) -> None:
    async def main() -> list[str | Completion]:
        context = await engine.aio.context("hb", docs)
        first = context.stream("Which colour?", max_tokens=200, ignore_eos=True)
        await anext(first)
        await first.aclose()  # leaving early
        stream = context.stream("Which colour?", max_tokens=9, ignore_eos=True)
        return [news async for news in stream]

    *texts, last = asyncio.run(main())
    assert isinstance(last, Completion) and last.text == "".join(map(str, texts))


def test_choosing(engine: preread.Engine, docs: Path) -> None:
    want = engine.context("hb", docs).choose("Is it blue?", ["yes", "no"])

    async def main() -> preread.Choice:
        return await (await engine.aio.open("hb")).choose("Is it blue?", ["yes", "no"])

    got = asyncio.run(main())
    assert got.probabilities == pytest.approx(want.probabilities, abs=1e-5)


def test_unknown_names_and_closed_engines_say_so(folder: Path) -> None:
    async def ask(engine: preread.Engine) -> list[BaseException | Completion]:
        asks = (engine.aio.ask("nobody", "x") for _ in range(3))
        return await asyncio.gather(*asks, return_exceptions=True)

    with preread.open(str(folder), dtype="float32") as engine:
        assert all(isinstance(e, UnknownName) for e in asyncio.run(ask(engine)))
    with pytest.raises(EngineError, match="closed"):
        asyncio.run(engine.aio.generate("x"))
