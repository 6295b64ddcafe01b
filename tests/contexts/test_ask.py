"""Questions to one shard and to several, alone, many and as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from preread.backend import Generate, RequestBatch, ResultBatch
from preread.blends import Approximate, Blend
from preread.contexts.ask import AskOptions, ask, ask_many, choose, stream
from preread.contexts.catalog.base import ContextRecord, Part, ShardRecord
from preread.contexts.layout import lay_out
from preread.contexts.opened import Blended, Opened
from preread.errors import RequestError
from preread.testing.backend import FakeBackend
from preread.testing.replies import Reply, find_line
from preread.types import Completion, Finish, Message, Prefix
from tests.contexts.made import NOW, source

SOURCES = (
    source("docs/hours.md", "opening time: 9 sharp\nclosing time: 18:00"),
    source("docs/people.md", "owner of the shop: Ann Lee\nnight guard: Bob Ray"),
    source("docs/prices.md", "price of salt: 3 euros\nprice of rope: 7 euros"),
)
TEXT = SOURCES[0].text


def opened(*shards: tuple[Part, ...], rate: float = 1000.0) -> Opened:
    records = []
    for parts in shards:
        system = lay_out("Read.", SOURCES, parts).text
        records.append(ShardRecord(system, (), len(system.split()) + 2, 0, (), parts))
    record = ContextRecord("shop", 3, "fake", "f", "Read.", SOURCES, tuple(records), NOW, None, ())
    return Opened(replace(record, prefill_tok_s=rate))


def file(i: int) -> tuple[Part, ...]:
    return (Part(i, 0, len(SOURCES[i].text)),)


ONE = (file(0) + file(1) + file(2),)
SPLIT = (file(0), file(1), file(2))


async def test_an_answer_carries_all_that_is_known() -> None:
    backend, context = FakeBackend(), opened(*ONE)
    await backend.build(Prefix(context.record.shards[0].system))
    answer = await ask(backend, context, "What is the closing time?")
    assert (answer.text, answer.finish_reason) == ("18:00", Finish.STOP)
    (citation,) = answer.citations
    assert (citation.source, citation.start_line, citation.match) == ("docs/hours.md", 2, "exact")
    assert answer.context and (answer.context.name, answer.context.version) == ("shop", 3)
    assert answer.usage.cached_tokens == context.record.tokens == answer.usage.context_tokens
    assert answer.timing.saved_ms == pytest.approx(answer.usage.cached_tokens)  # at 1 ms a token
    assert answer.unread == () and answer.alternatives == () and answer.logprobs == ()


async def test_an_unknown_rate_saves_nothing_that_could_be_named() -> None:
    answer = await ask(FakeBackend(), opened(*ONE, rate=0.0), "closing time?")
    assert answer.timing.saved_ms == 0.0


async def test_many_questions_are_one_batch_in_order() -> None:
    backend = FakeBackend()
    found = await ask_many(backend, opened(*ONE), ["night guard?", "price of rope?", "xyzzy?"])
    assert [a.text for a in found] == ["Bob Ray", "7 euros", "not stated"]
    assert [call.kind for call in backend.calls] == ["submit"]
    assert found[2].citations == ()


async def test_no_questions_need_no_batch() -> None:
    backend = FakeBackend()
    assert await ask_many(backend, opened(*ONE), []) == []
    assert backend.calls == []


async def test_an_empty_question_is_refused() -> None:
    with pytest.raises(RequestError, match="Question 1 is empty"):
        await ask_many(FakeBackend(), opened(*ONE), ["fine?", " \n"])


async def test_an_error_stays_with_its_row() -> None:
    def answer(prefix: Prefix, question: str) -> str | Reply:
        return Reply("", error="boom") if "rope" in question else find_line(prefix, question)

    found = await ask_many(FakeBackend(answer), opened(*ONE), ["night guard?", "price of rope?"])
    assert (found[0].text, found[0].error) == ("Bob Ray", "")
    assert (found[1].finish_reason, found[1].error) == (Finish.ERROR, "boom")
    assert found[1].citations == () and found[1].unread == ()


async def test_a_question_goes_to_the_best_shards() -> None:
    backend = FakeBackend()
    answer = await ask(backend, opened(*SPLIT), "price of salt?", options=AskOptions(shards=2))
    assert answer.text == "3 euros"
    assert answer.citations[0].source == "docs/prices.md"
    assert len(answer.alternatives) == 1 and answer.alternatives[0].text == "not stated"
    assert answer.unread in (("docs/hours.md",), ("docs/people.md",))
    batch = backend.calls[-1].what
    assert len(batch) == 2 and len(batch.prefixes) == 2
    assert answer.logprobs == ()
    assert answer.usage.output_tokens == sum(len(a.tokens) for a in (answer, *answer.alternatives))


async def test_questions_of_a_split_context_share_a_batch() -> None:
    backend = FakeBackend()
    questions = ["closing time?", "night guard?", "price of rope?"]
    options = AskOptions(shards=1)
    found = await ask_many(backend, opened(*SPLIT), questions, Generate(logprobs=True), options)
    assert [a.text for a in found] == ["18:00", "Bob Ray", "7 euros"]
    assert [a.citations[0].source for a in found] == [s.path for s in SOURCES]
    assert len(found[1].logprobs) == 2
    assert [call.kind for call in backend.calls] == ["submit"]


async def test_a_failed_shard_leaves_the_answer_of_another() -> None:
    def answer(prefix: Prefix, question: str) -> str | Reply:
        if "salt" in prefix.system:
            return Reply("", error="out of memory")
        return find_line(prefix, question)

    found = await ask(
        FakeBackend(answer), opened(*SPLIT), "night guard, price?", options=AskOptions(shards=3)
    )
    assert (found.text, found.error) == ("Bob Ray", "")
    assert found.unread == ("docs/prices.md",)
    assert [a.error for a in found.alternatives if a.error] == ["out of memory"]


class HalfClosed(FakeBackend):
    """Row 0 of every batch ends cancelled."""

    async def submit(self, batch: RequestBatch) -> AsyncIterator[ResultBatch]:
        async for news in super().submit(batch):
            ends = zip(news.rows.tolist(), news.finish, strict=True)
            yield replace(
                news, finish=[end and (end if r else Finish.CANCELLED) for r, end in ends]
            )


async def test_a_cancelled_shard_was_not_read() -> None:
    options = AskOptions(shards=3)
    found = await ask(HalfClosed(), opened(*SPLIT), "night guard, price of salt?", options=options)
    assert [a.finish_reason for a in found.alternatives][-1] is Finish.CANCELLED
    assert len(found.unread) == 1


@pytest.mark.parametrize("shards", [0, -1])
async def test_at_least_one_shard_is_asked(shards: int) -> None:
    options = AskOptions(shards=shards)
    for context in (opened(*ONE), opened(*SPLIT)):
        answer = await ask(FakeBackend(), context, "closing time?", options=options)
        assert answer.text == "18:00"


async def test_lines_that_were_not_read_are_named() -> None:
    cut = TEXT.index("\n")
    context = opened((Part(0, 0, cut),), (Part(0, cut + 1, len(TEXT)),), file(1))
    answer = await ask(FakeBackend(), context, "closing time?", options=AskOptions(shards=1))
    assert answer.text == "18:00" and answer.citations[0].start_line == 2
    assert answer.unread == ("docs/hours.md:1-1", "docs/people.md")


async def test_a_stream_ends_with_its_completion() -> None:
    items = [
        item async for item in stream(FakeBackend(), opened(*ONE), "Who is the owner of the shop?")
    ]
    *texts, last = items
    assert texts == ["Ann", " Lee"] and isinstance(last, Completion)
    assert last.text == "Ann Lee" and last.citations[0].match == "exact"


async def test_a_stream_over_shards_has_only_its_completion() -> None:
    items = [item async for item in stream(FakeBackend(), opened(*SPLIT), "owner of the shop?")]
    assert len(items) == 1 and isinstance(items[0], Completion) and items[0].text == "Ann Lee"


async def test_leaving_a_stream_closes_the_batch() -> None:
    backend = FakeBackend(lambda _p, _q: "one two three")
    closed = []
    submit = backend.submit

    def watched(batch):  # type: ignore[no-untyped-def]
        async def run():  # type: ignore[no-untyped-def]
            try:
                async for news in submit(batch):
                    yield news
            finally:
                closed.append(True)

        return run()

    backend.submit = watched  # type: ignore[method-assign]
    async with aclosing(stream(backend, opened(*ONE), "count?")) as items:
        assert await anext(items) == "one"
    assert closed == [True]


async def test_a_question_that_matches_nothing_is_answered_with_a_note() -> None:
    options = AskOptions(shards=2)
    answer = await ask(FakeBackend(), opened(*SPLIT), "Zymurgy?", options=options)
    assert "asked the first 2 of 3 shards" in answer.notes[0]
    (choice,) = await choose(FakeBackend(), opened(*SPLIT), ["Zymurgy?"], ["a", "b"])
    assert "asked the first 1 of 3 shards" in choice.notes[0]
    for context, question in ((opened(*SPLIT), "price?"), (opened(*ONE), "Zymurgy?")):
        assert (await ask(FakeBackend(), context, question, options=options)).notes == ()


async def test_going_beyond_what_is_read_well_is_said() -> None:
    context, question = opened(*ONE), "Who is the owner of the shop?"
    usage = (await ask(FakeBackend(), context, question)).usage
    used = usage.computed_tokens + usage.output_tokens
    enough = FakeBackend(effective_limit=used)
    assert (await ask(enough, context, question)).notes == ()
    less = FakeBackend(effective_limit=used - 1)
    (note,) = (await ask(less, context, question)).notes
    assert f"{used} tokens, of them 10 for the question and 2 for the answer" in note
    assert f"up to {used - 1}" in note
    assert (await choose(less, context, [question + " Say."], ["a b", "c"]))[0].notes == ()
    assert (await choose(less, context, [question + " Do say."], ["a b", "c"]))[0].notes


async def test_history_comes_before_the_question() -> None:
    backend = FakeBackend()
    history = (Message("user", "price of salt?"), Message("assistant", "3 euros"))
    options = AskOptions(shards=1, history=history, keep=True)
    await ask(backend, opened(*SPLIT), "And of the other one?", options=options)
    batch = backend.calls[-1].what
    assert batch.keep and batch.prefixes[0].history == history
    assert "salt" in batch.prefixes[0].system  # routed by the question before


async def test_choosing_gives_a_distribution_per_question() -> None:
    backend = FakeBackend()
    good, other = await choose(
        backend, opened(*ONE), ["night guard?", "xyzzy?"], ["Ann Lee", "Bob Ray"]
    )
    assert good.label == "Bob Ray" and good.probabilities["Bob Ray"] == pytest.approx(0.9)
    assert sum(good.probabilities.values()) == pytest.approx(1) and good.mass == pytest.approx(0.9)
    assert other.mass == pytest.approx(0.1)
    assert good.context and good.unread == () and good.usage.output_tokens == 0


async def test_choosing_from_a_split_context_asks_the_best_shard() -> None:
    (choice,) = await choose(
        FakeBackend(), opened(*SPLIT), ["night guard?"], ["Ann Lee", "Bob Ray"]
    )
    assert choice.label == "Bob Ray"
    assert choice.unread == ("docs/hours.md", "docs/prices.md")


async def test_a_failed_choice_is_said() -> None:
    backend = FakeBackend(lambda _p, _q: Reply("", error="boom"))
    (choice,) = await choose(backend, opened(*ONE), ["q"], ["a", "b"])
    assert (choice.label, choice.probabilities, choice.error) == ("", {}, "boom")


async def test_citing_can_be_left_out() -> None:
    answer = await ask(FakeBackend(), opened(*ONE), "closing time?", options=AskOptions(cite=False))
    assert answer.text == "18:00" and answer.citations == ()


async def test_choices_are_columns_and_a_sequence() -> None:
    def answer(_prefix: Prefix, question: str) -> str | Reply:
        return Reply("", error="boom") if question == "fail?" else question

    questions = ["a", "fail?", "b", "a"]
    got = await choose(FakeBackend(answer), opened(*ONE), questions, ["a", "b"])
    assert got.labels == [c.label for c in got] == ["a", "", "b", "a"]
    assert [got[i] for i in range(4)] == list(got) == got
    assert got[-1] == got[3] and got[1:3] == [got[1], got[2]] and got != [got[0]]
    assert list(got.errors) == [1] and got.usage.shape == (4, 4)
    for i in (0, 2, 3):
        assert list(got[i].probabilities.values()) == got.probabilities[i].tolist()
        assert got[i].mass == got.mass[i]
    assert await choose(FakeBackend(), opened(*ONE), [], ["a"]) == []
    with pytest.raises(IndexError):
        got[4]


@pytest.mark.parametrize("shards", [ONE, SPLIT])
async def test_the_askers_instructions_come_after_the_context(shards: tuple[Any, ...]) -> None:
    """What was read of the context stays as it is, and nothing else is read again."""
    backend, context = FakeBackend(), opened(*shards)
    for shard in context.record.shards:
        await backend.build(Prefix(shard.system))
    plain, told = AskOptions(), AskOptions(system="  Be brief. ")
    first = await ask(backend, context, "What is the closing time?", options=plain)
    second = await ask(backend, context, "What is the closing time?", options=told)
    assert first.text == second.text == "18:00"
    assert second.usage.context_tokens > first.usage.context_tokens
    assert second.usage.cached_tokens >= context.record.shards[0].tokens - 2
    prefix = context.prefix(0, system="  Be brief. ")
    assert prefix.system == f"{context.record.shards[0].system}\n\nBe brief."
    assert context.prefix(0, system=" \n") == context.prefix(0)
    asked = (backend, context, ["Open?"], ["yes", "no"])
    (one,), (other,) = await choose(*asked), await choose(*asked, told)
    assert other.usage.context_tokens == one.usage.context_tokens + 2  # words


def test_what_is_put_together_takes_no_instructions() -> None:
    agreed = Approximate("a+b", Blend(("a", "b"), 0.1))
    context = Opened(opened(*ONE).record, blended=Blended(agreed, ()))
    with pytest.raises(RequestError, match="no further instructions"):
        context.prefix(0, system="Be brief.")
