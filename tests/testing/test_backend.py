"""FakeBackend keeps the contract it stands in for."""

from __future__ import annotations

import json

import pytest

from preread.backend import Backend, Generate, RequestBatch
from preread.contexts.rows import collect
from preread.testing.backend import FakeBackend
from preread.testing.conformance_backend import BackendConformance
from preread.testing.replies import Reply
from preread.types import Finish, Prefix

BOOK = Prefix("Opening time: 9 sharp\nClosing time: 18:00\nOwner of the shop: Ann Lee")


class TestFakeBackend(BackendConformance):
    async def open(self) -> Backend:
        return FakeBackend()


async def answers(backend: FakeBackend, *questions: str, work: Generate | None = None) -> list[str]:
    batch = RequestBatch(work or Generate(), questions, (BOOK,))
    return [row.text for row in await collect(backend, batch)]


async def test_finds_the_line_that_shares_most_words() -> None:
    found = await answers(FakeBackend(), "What is the closing time?", "Who is the owner?", "Why?")
    assert found == ["18:00", "Ann Lee", "not stated"]


async def test_answers_by_a_function_and_fails_by_row() -> None:
    def answer(prefix: Prefix, question: str) -> str | Reply:
        if question == "raise":
            raise LookupError("nothing there")
        return Reply("", error="scripted") if question == "fail" else question.upper()

    batch = RequestBatch(Generate(), ["one", "fail", "raise", "two"], (BOOK,))
    rows = await collect(FakeBackend(answer), batch)
    assert [row.text for row in rows] == ["ONE", "", "", "TWO"]
    assert [row.error for row in rows] == ["", "scripted", "LookupError: nothing there", ""]


async def test_streams_in_pieces_that_add_up() -> None:
    text = "  two  spaces\nand a line end \n"
    backend = FakeBackend(lambda _prefix, _question: text)
    pieces = []
    async for news in backend.submit(RequestBatch(Generate(), ["q"], (BOOK,))):
        pieces += news.texts
    assert len(pieces) > 4 and "".join(pieces) == text


async def test_remembers_calls_and_forgets_memory() -> None:
    backend = FakeBackend()
    await backend.build(BOOK)
    backend.restart()
    again = await backend.build(BOOK)
    assert again.loaded_tokens == again.reused_tokens == again.tokens
    assert [call.kind for call in backend.calls] == ["build", "build"]


async def test_without_a_tier_a_restart_computes_again() -> None:
    backend = FakeBackend(stored=False)
    first = await backend.build(BOOK)
    backend.restart()
    second = await backend.build(BOOK)
    assert (first.stored, first.chunk_keys) == (False, ())
    assert second.computed_tokens == second.tokens


async def test_invents_a_value_for_a_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": "integer"}},
    }
    (text,) = await answers(FakeBackend(), "q", work=Generate(schema=schema))
    assert json.loads(text) == {"kind": "a", "n": 0}


async def test_cancels_what_runs_when_closed() -> None:
    backend = FakeBackend(lambda _p, _q: "one two three four")
    finish = None
    async for news in backend.submit(RequestBatch(Generate(), ["q"], (BOOK,))):
        finish = news.finish[0]
        await backend.close()
    assert finish is Finish.CANCELLED


async def test_never_reads_text_as_its_own_tokens() -> None:
    one = Prefix("a", ())
    two = Prefix("<end> <user> a <assistant>")
    assert await FakeBackend().count([one, two]) == [3, 6]


@pytest.mark.parametrize("limit", [40, 41])
async def test_the_limit_cuts_the_answer(limit: int) -> None:
    backend = FakeBackend(lambda _p, _q: "word " * 100, limit=limit)
    (row,) = await collect(backend, RequestBatch(Generate(max_tokens=99), ["q"], (BOOK,)))
    assert row.finish is Finish.LENGTH
    assert row.usage.cached_tokens + row.usage.computed_tokens + len(row.tokens) == limit
