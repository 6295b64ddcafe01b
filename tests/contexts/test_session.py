"""Sessions: a history that is kept, continued, forked and never cut in silence."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from preread.backend import Generate
from preread.contexts.build import BuildRequest, build_context
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.opened import Opened
from preread.contexts.session import Session, messages
from preread.errors import CatalogConflict, ContextTooLong, HomeError, UnknownName, UsageError
from preread.testing.backend import FakeBackend
from preread.testing.replies import Reply
from preread.types import Completion, Finish, Message, Prefix
from tests.contexts.made import config, folder


def answer(prefix: Prefix, question: str) -> str | Reply:
    if question == "fail":
        return Reply("", error="boom")
    asked = [m.content for m in prefix.history if m.role == "user"]
    return f"after {len(asked)}: {question}"


async def session(place: Path, name: str = "s1", limit: int = 4096) -> Session:
    backend = FakeBackend(answer, limit=limit)
    catalog = SqliteCatalog(place / "home" / "catalog.sqlite")
    settings = config(place / "home", answer_room=8, max_tokens=8)
    request = BuildRequest("shop", (str(folder(place, a__md="opening time: 9")),))
    outcome = await build_context(backend, catalog, request, settings)
    return Session(backend, catalog, Opened(outcome.record), name)


async def test_a_session_sees_its_own_history_and_no_other(tmp_path: Path) -> None:
    one = await session(tmp_path)
    two = Session(one.backend, one.catalog, one.context, "s2")
    assert (await one.ask("a?")).text == "after 0: a?"
    assert (await one.ask("b?")).text == "after 1: b?"
    assert (await two.ask("c?")).text == "after 0: c?"
    assert one.turns() == (("a?", "after 0: a?"), ("b?", "after 1: b?"))
    assert list(one.catalog.sessions("shop")) == ["s1", "s2"]


async def test_a_second_turn_computes_only_what_is_new(tmp_path: Path) -> None:
    one = await session(tmp_path)
    first = await one.ask("a?")
    second = await one.ask("b?")
    before = first.usage.context_tokens + first.usage.computed_tokens + first.usage.output_tokens
    assert second.usage.cached_tokens >= before - 2
    assert second.usage.computed_tokens <= 5


async def test_a_history_outlives_the_process(tmp_path: Path) -> None:
    await (await session(tmp_path)).ask("a?")
    assert (await (await session(tmp_path)).ask("b?")).text == "after 1: b?"


async def test_a_stream_keeps_the_turn_too(tmp_path: Path) -> None:
    one = await session(tmp_path)
    items = [item async for item in one.stream("a?")]
    assert "".join(i for i in items if isinstance(i, str)) == "after 0: a?"
    assert isinstance(items[-1], Completion)
    assert one.turns() == (("a?", "after 0: a?"),)


async def test_a_failed_turn_is_not_kept(tmp_path: Path) -> None:
    one = await session(tmp_path)
    assert (await one.ask("fail")).finish_reason is Finish.ERROR
    assert one.turns() == ()


async def test_a_history_that_does_not_fit_is_an_error_with_ways_out(tmp_path: Path) -> None:
    one = await session(tmp_path, limit=80)
    work = Generate(max_tokens=8)
    with pytest.raises(ContextTooLong) as caught:
        for n in range(40):
            await one.ask(f"is this question number {n}?", work)
    turns = len(one.turns())
    assert f"has {turns} turns" in caught.value.message and "80" in caught.value.message
    assert "--session" in caught.value.hint and f"keep={turns // 2}" in caught.value.hint
    shorter = one.fork("s2", keep=turns // 2)
    assert (await shorter.ask("still there?", work)).text == f"after {turns // 2}: still there?"


async def test_two_processes_in_one_session_do_not_mix_and_lose_no_answer(tmp_path: Path) -> None:
    one = await session(tmp_path)
    answers = await asyncio.gather(one.ask("a?"), one.ask("b?"))
    assert [a.text for a in answers] == ["after 0: a?", "after 0: b?"]
    kept, lost = sorted(answers, key=lambda answer: len(answer.notes))
    assert kept.notes == () and len(one.turns()) == 1 and one.turns()[0][1] == kept.text
    assert "not kept in session 's1'" in lost.notes[0] and "answered in it" in lost.notes[0]
    assert (await one.ask("c?")).text == "after 1: c?"


async def test_an_answer_outlives_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    one = await session(tmp_path)

    class ReadOnly(SqliteCatalog):
        def append_turn(self, *_: object, **__: object) -> None:
            raise HomeError("read-only")

    items = [i async for i in replace(one, catalog=ReadOnly(one.catalog.path)).stream("a?")]  # type: ignore[attr-defined]
    assert isinstance(items[-1], Completion) and items[-1].text == "after 0: a?"
    assert "read-only" in items[-1].notes[0]


async def test_forks_part_ways(tmp_path: Path) -> None:
    one = await session(tmp_path)
    await one.ask("a?")
    other = one.fork("s2")
    await one.ask("b?")
    await other.ask("c?")
    assert [q for q, _ in one.turns()] == ["a?", "b?"]
    assert [q for q, _ in other.turns()] == ["a?", "c?"]


async def test_forking_again_goes_on_and_never_mixes(tmp_path: Path) -> None:
    one = await session(tmp_path)
    for question in ("a?", "b?", "c?"):
        await one.ask(question)
    one.catalog.append_turn("shop", "s2", one.turns()[0], at=0)  # an interrupted fork
    assert one.fork("s2").turns() == one.turns()
    await Session(one.backend, one.catalog, one.context, "s3").ask("else?")
    with pytest.raises(CatalogConflict, match="another conversation"):
        one.fork("s3")
    with pytest.raises(UnknownName, match="no turns"):
        Session(one.backend, one.catalog, one.context, "new").fork("s4")
    with pytest.raises(UsageError, match="cannot name a session"):
        one.fork("../x")


def test_turns_are_messages() -> None:
    assert messages((("q", "a"),)) == (Message("user", "q"), Message("assistant", "a"))
