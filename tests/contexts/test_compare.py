from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.backend import Generate, RequestBatch, ResultBatch
from preread.contexts.catalog.base import ContextRecord, ShardRecord, SourceRecord
from preread.contexts.compare import ARMS, PROBE, CompareOptions, compare_arms, parse_arms
from preread.contexts.compared import (
    Agreement,
    Answer,
    ArmResult,
    BreakEven,
    Comparison,
    break_even,
)
from preread.contexts.layout import Layout, lay_out, whole
from preread.contexts.questions import Question
from preread.errors import EngineError, RequestError
from preread.testing.backend import FakeBackend
from preread.testing.replies import Answer as AnswerFunction
from preread.testing.replies import Reply, find_line
from preread.types import GREEDY, Prefix, Usage

INSTRUCTIONS = "Answer from the documents."
FILLER = "Much is said and little is meant. " * 20  # long enough for sections of their own
TEXTS = {
    "animals.md": f"# Animals\n\ncolour of the fox: red\n{FILLER}\n"
    f"# Birds\n\ncolour of the crow: black\n{FILLER}\n",
    "tools.md": f"# Tools\n\nlength of the saw: 40 cm\n{FILLER}\n"
    f"# Glue\n\nprice of glue: 3 pounds\n{FILLER}\n",
    "people.md": f"# People\n\nname of the founder: Harriet Brindle\n{FILLER}\n",
}
QUESTIONS = (
    Question("What is the colour of the fox?", ("red",)),
    Question("What is the length of the saw?", ("41 cm",)),
    Question("Who is the founder, by name?"),
)
MAX_TOKENS = 7


class Timed(FakeBackend):
    """A FakeBackend whose rows with reuse=False are answered by a backend that has read nothing,
    and whose simulated times move a clock."""

    def __init__(self, answer: AnswerFunction = find_line, afresh: AnswerFunction | None = None):
        super().__init__(answer)
        self.afresh = afresh or answer
        self.batches: list[RequestBatch] = []
        self.now = 0.0

    def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        self.batches.append(batch)
        backend = super() if batch.reuse else FakeBackend(self.afresh)
        return self._timed(backend.submit(batch))

    async def _timed(
        self, source: AsyncGenerator[ResultBatch, None]
    ) -> AsyncGenerator[ResultBatch, None]:
        async for news in source:
            self.now += sum(
                float(t[2]) / 1000 for t, end in zip(news.times, news.finish, strict=True) if end
            )
            yield news

    def asked(self) -> list[RequestBatch]:
        """Without the rows that only warm up or build."""
        return [b for b in self.batches if self.work(b).max_tokens == MAX_TOKENS]

    @staticmethod
    def work(batch: RequestBatch) -> Generate:
        assert isinstance(batch.work, Generate)
        return batch.work


SOURCES = tuple(SourceRecord(path, "", "", text) for path, text in TEXTS.items())


def record_of(*shards: Layout) -> ContextRecord:
    shards = shards or (lay_out(INSTRUCTIONS, SOURCES, whole(SOURCES)),)
    return ContextRecord(
        name="handbook",
        version=3,
        model="fake",
        fingerprint="fa" * 32,
        instructions=INSTRUCTIONS,
        sources=SOURCES,
        shards=tuple(
            ShardRecord(s.text, tuple(p.source for p in s.parts), 10, 640, (), s.parts)
            for s in shards
        ),
        created_at=0.0,
        expires_at=None,
        patterns=(),
        prefill_tok_s=1e9,  # nobody may use it in place of measuring
    )


async def compared(
    backend: Timed,
    record: ContextRecord | None = None,
    questions: Sequence[Question] = QUESTIONS,
    **options: Any,
) -> Comparison:
    options = {"arms": tuple(ARMS), "max_tokens": MAX_TOKENS} | options
    return await compare_arms(
        backend,
        record or record_of(),
        questions,
        CompareOptions(clock=lambda: backend.now, **options),
    )


async def test_every_arm_gets_the_same_questions_one_at_a_time_and_greedy() -> None:
    backend = Timed()
    await compared(backend)
    asked = backend.asked()
    assert [list(b.prompts) for b in asked] == [[q.text] for q in QUESTIONS] * 3
    assert [b.reuse for b in asked] == [True] * 3 + [False] * 6
    assert {(b.work.sampling, b.keep, b.raw) for b in asked} == {(GREEDY, False, False)}  # type: ignore[union-attr]
    assert [b.prefixes for b in asked[:3]] == [b.prefixes for b in asked[3:6]]


async def test_a_context_that_expires_on_the_way_is_compared_to_the_end() -> None:
    result = await compared(Timed(), replace(record_of(), expires_at=1.0))
    assert [a.error for arm in result.arms for a in arm.answers] == [""] * 9


async def test_the_counts_and_times_are_those_of_the_backend() -> None:
    backend = Timed()
    result = await compared(backend, top=2)
    cached, incontext, bm25 = result.arms
    prefix = Prefix(record_of().shards[0].system)
    (tokens,) = await backend.count([prefix])
    turns = [n - tokens for n in await backend.count([prefix] * 3, [q.text for q in QUESTIONS])]
    output = sum(len(a.text.split()) for a in cached.answers)
    assert cached.build_tokens == tokens + 4  # the probe: three template tokens and itself
    assert cached.build_s == pytest.approx((cached.build_tokens + 1) / 1000)
    assert cached.usage == Usage(3 * tokens, 3 * tokens, sum(turns), output)
    assert cached.computed_tokens == tokens + 4 + sum(turns)
    assert incontext.usage == Usage(3 * tokens, 0, 3 * tokens + sum(turns), output)
    assert (incontext.build_s, incontext.build_tokens) == (0.0, 0)
    assert bm25.usage.cached_tokens == 0
    assert 0 < bm25.usage.computed_tokens < incontext.usage.computed_tokens
    middle = sorted(turns)[1]
    assert cached.ttft_s == pytest.approx(middle / 1000)
    assert incontext.ttft_s == pytest.approx((tokens + middle) / 1000)
    assert incontext.total_s == pytest.approx((3 * tokens + sum(turns) + output) / 1000)
    assert cached.total_s == pytest.approx(cached.build_s + (sum(turns) + output) / 1000)


async def test_answers_are_graded_where_something_is_known() -> None:
    result = await compared(Timed())
    for arm in result.arms:
        assert [a.text for a in arm.answers] == ["red", "40 cm", "Harriet Brindle"]
        assert [a.correct for a in arm.answers] == [True, False, None]
        assert (arm.graded, arm.correct, arm.failed) == (2, 1, 0)
    assert result.agreement == Agreement(3, ())


async def test_build_time_is_measured_even_if_the_context_is_ready() -> None:
    backend = Timed()
    fresh = await compared(backend)
    again = await compared(backend)
    assert fresh.arms[0].build_s > 0
    assert again.arms[0].build_s == pytest.approx(fresh.arms[0].build_s)


async def test_a_lost_context_is_made_ready_before_the_first_question() -> None:
    result = await compared(Timed(), arms=("cached",))
    first, *_ = result.arms[0].answers
    assert first.usage.cached_tokens == first.usage.context_tokens > 0
    assert result.break_even == ()
    assert result.agreement is None


async def test_without_the_cached_arm_nothing_is_built() -> None:
    backend = Timed()
    result = await compared(backend, arms=("bm25", "incontext"))
    assert [arm.name for arm in result.arms] == ["bm25", "incontext"]
    assert not [call for call in backend.calls if call.kind == "build"]
    assert result.break_even == ()
    assert result.agreement is None


async def test_a_split_context_asks_the_same_shards_in_both_arms() -> None:
    shards = [lay_out(INSTRUCTIONS, SOURCES, (part,)) for part in whole(SOURCES)]
    backend = Timed()
    result = await compared(backend, record_of(*shards), shards=2)
    builds = [b for b in backend.batches if b.prompts == [PROBE] and b.prefixes]
    assert [b.prefixes[0].system for b in builds] == [s.text for s in shards]
    asked = backend.asked()
    for ours, theirs in zip(asked[:3], asked[3:6], strict=True):
        assert len(ours) == 2
        assert (ours.prompts, ours.prefixes, ours.work) == (
            theirs.prompts,
            theirs.prefixes,
            theirs.work,
        )
        assert (ours.reuse, theirs.reuse) == (True, False)
    assert result.agreement == Agreement(3, ())
    cached, incontext, _ = result.arms
    assert cached.usage.cached_tokens == incontext.usage.context_tokens > 0


async def test_bm25_lays_out_the_best_passages_in_the_order_of_the_documents() -> None:
    backend = Timed()
    question = Question("Harriet and the crow, the length of the saw")
    await compared(backend, questions=[question], arms=("bm25",), top=3)
    text = backend.asked()[0].prefixes[0].system
    found = [text.find(words) for words in ("the crow: black", "the saw: 40", "Harriet Brindle")]
    assert text.startswith(f"{INSTRUCTIONS}\n\n[animals.md]\n")
    assert found == sorted(found)
    assert found[0] > 0
    assert "the fox" not in text
    assert "glue" not in text

    backend = Timed()
    await compared(backend, questions=[question], arms=("bm25",), top=1)
    assert backend.asked()[0].prefixes[0].system.count("# ") == 1


async def test_bm25_without_a_hit_has_the_instructions_alone() -> None:
    backend = Timed()
    result = await compared(backend, questions=[Question("Zebra?!")], arms=("bm25",))
    assert backend.asked()[0].prefixes == (Prefix(INSTRUCTIONS),)
    assert result.arms[0].answers[0].text == "not stated"


async def test_answers_that_differ_are_listed() -> None:
    def other(prefix: Prefix, question: str) -> str:
        return "green" if "fox" in question else find_line(prefix, question)

    result = await compared(Timed(afresh=other), arms=("incontext", "cached"))
    assert result.agreement == Agreement(2, (0,))
    assert result.to_json()["agreement"] == {"equal": 2, "differing": [0]}


async def test_a_failed_question_is_one_answer_and_stays_out_of_the_medians() -> None:
    def broken(prefix: Prefix, question: str) -> str | Reply:
        return Reply("", error="boom") if "fox" in question else find_line(prefix, question)

    result = await compared(Timed(afresh=broken))
    cached, incontext, _ = result.arms
    first = incontext.answers[0]
    assert (first.text, first.correct, first.error) == ("", False, "boom")
    assert (incontext.failed, incontext.graded, incontext.correct) == (1, 2, 0)
    times = [a.seconds for a in incontext.answers[1:]]
    assert incontext.per_question_s == pytest.approx(sum(times) / 2)
    assert result.agreement == Agreement(2, (0,))
    assert cached.failed == 0
    assert result.to_json()["arms"]["incontext"]["answers"][0]["error"] == "boom"


async def test_an_arm_that_answers_nothing_is_an_error() -> None:
    def broken(prefix: Prefix, question: str) -> Reply | str:
        return "ok" if question == PROBE else Reply("", error="too long")

    with pytest.raises(EngineError, match=r"incontext answered no question.*too long.*--arms"):
        await compared(Timed(afresh=broken))


async def test_a_build_that_fails_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"handbook could not be read afresh: boom.*verify"):
        await compared(Timed(afresh=lambda prefix, question: Reply("", error="boom")))


async def test_json_holds_everything() -> None:
    result = await compared(Timed())
    value = json.loads(json.dumps(result.to_json()))
    assert value["questions"] == [q.text for q in QUESTIONS]
    assert list(value["arms"]) == ["cached", "incontext", "bm25"]
    for name, arm in zip(value["arms"], result.arms, strict=True):
        assert value["arms"][name]["computed_tokens"] == arm.computed_tokens
        assert len(value["arms"][name]["answers"]) == 3
    assert value["break_even"] == {b.other.name: b.questions for b in result.break_even}
    assert value["agreement"] == {"equal": 3, "differing": []}


def test_unknown_arms_are_refused_with_the_known_ones() -> None:
    assert parse_arms(" bm25, cached,bm25,") == ("bm25", "cached")
    with pytest.raises(RequestError, match="'rag'; there are: cached, incontext, bm25"):
        parse_arms("cached,rag")
    with pytest.raises(RequestError, match="there are: cached, incontext, bm25"):
        parse_arms(" , ")


def arm(name: str, build: float, seconds: float) -> ArmResult:
    return ArmResult(name, build, 0, (Answer("", None, seconds, seconds, Usage()),))


eighths = st.integers(0, 200).map(lambda n: n / 8)  # sums and products are exact


@given(eighths, eighths, eighths, eighths)
def test_break_even_is_the_smallest_number_of_questions(
    a: float, b: float, c: float, d: float
) -> None:
    cached, other = arm("cached", a, b), arm("bm25", c, d)
    # Differences are multiples of 1/8 and at most 25: 200 questions decide.
    slow = next((n for n in range(201) if a + n * b <= c + n * d), None)
    assert break_even(cached, other) == slow


def test_break_even_is_exact_for_any_times() -> None:
    assert break_even(arm("cached", 1e9, 1.0), arm("bm25", 0.0, 1.0 + 2**-52)) == 10**9 * 2**52


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            ("incontext", 0.0, 1.0),
            "cached breaks even with incontext at 3 questions: "
            "2 s + 0.25 s per question against 0 s + 1 s per question.",
        ),
        (
            ("bm25", 0.5, 0.125),
            "cached never breaks even with bm25: "
            "2 s + 0.25 s per question against 0.5 s + 0.125 s per question.",
        ),
        (
            ("incontext", 0.0, 2.5),
            "cached breaks even with incontext at 1 question: "
            "2 s + 0.25 s per question against 0 s + 2.5 s per question.",
        ),
    ],
)
def test_break_even_is_told_with_its_numbers(
    other: tuple[str, float, float], sentence: str
) -> None:
    cached, against = arm("cached", 2.0, 0.25), arm(*other)
    assert BreakEven(cached, against, break_even(cached, against)).describe() == sentence
