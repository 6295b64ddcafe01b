"""The suite that every backend passes. Subclass `BackendConformance` in a test file and say how to
open one; pytest does the rest. It asks nothing of the model but that it can read text: limits of at
least 1,024 tokens, any weights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from preread.backend import (
    Backend,
    Choose,
    Generate,
    Leaving,
    LogLikelihood,
    Ragged,
    RequestBatch,
    ResultBatch,
)
from preread.blends import Blend
from preread.contexts.rows import Row, collect
from preread.errors import ContextTooLong, RequestError
from preread.testing.questions import BOOK, BROKEN, FACTS, OTHER, QUESTIONS, SHORT
from preread.types import Finish, Message, Prefix, Sampling


async def run(backend: Backend, work: Generate | Choose | LogLikelihood, questions: Sequence[str],
              prefix: Prefix = BOOK) -> list[Row]:  # fmt: skip
    return await collect(backend, RequestBatch(work, list(questions), (prefix,)))


class BackendConformance:
    """Every test gets a backend of its own."""

    async def open(self) -> Backend:
        """A fresh backend that holds no KV of these tests."""
        raise NotImplementedError

    @pytest.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        backend = await self.open()
        yield backend
        await backend.close()

    async def test_says_what_it_is(self, backend: Backend) -> None:
        info = backend.info
        assert isinstance(backend, Backend)
        assert info.name and info.model and info.fingerprint
        assert 0 < info.effective_limit <= info.limit
        assert info.kv_bytes_per_token >= 0

    async def test_counts_what_a_request_reads(self, backend: Backend) -> None:
        (head,) = await backend.count([BOOK])
        (whole,) = await backend.count([BOOK], [QUESTIONS[0]])
        (row,) = await run(backend, SHORT, QUESTIONS[:1])
        assert row.usage.context_tokens == head < whole
        assert row.usage.cached_tokens + row.usage.computed_tokens == whole

    async def test_counting_many_is_counting_each(self, backend: Backend) -> None:
        told = Prefix(BOOK.system, (Message("user", "Hello?"), Message("assistant", "Good day.")))
        counts = await backend.count([BOOK, told, OTHER])
        assert counts == [(await backend.count([p]))[0] for p in (BOOK, told, OTHER)]
        assert counts[1] > counts[0] > counts[2] > 0

    async def test_a_build_reads_once(self, backend: Backend) -> None:
        (tokens,) = await backend.count([BOOK])
        first, second = await backend.build(BOOK), await backend.build(BOOK)
        assert (first.tokens, first.reused_tokens, first.computed_tokens) == (tokens, 0, tokens)
        assert (second.reused_tokens, second.computed_tokens) == (tokens, 0)
        assert first.chunk_keys == second.chunk_keys
        assert first.kv_bytes == second.kv_bytes == tokens * backend.info.kv_bytes_per_token

    async def test_a_build_goes_on_where_another_ends(self, backend: Backend) -> None:
        (shared,) = await backend.count([BOOK])
        await backend.build(BOOK)
        longer = await backend.build(Prefix(BOOK.system + "\nThe cellar has no number."))
        assert shared // 2 < longer.reused_tokens < longer.tokens
        assert longer.reused_tokens + longer.computed_tokens == longer.tokens

    async def test_builds_at_once_do_the_work_once(self, backend: Backend) -> None:
        built = await asyncio.gather(*(backend.build(BOOK) for _ in range(3)))
        assert sum(b.computed_tokens for b in built) == built[0].tokens

    async def test_a_blend_is_a_prefix_of_its_own_or_refused(self, backend: Backend) -> None:
        """What is approximate is never found by who asks for the exact."""
        later = f"{BOOK.system[: BOOK.system.index('[')]}[yard.md]\n{FACTS.replace('Room', 'Shed')}"
        whole = Prefix(f"{BOOK.system}\n\n{later[later.index('[') :]}")
        blended = replace(whole, blend=Blend((BOOK.system, later), 0.1))
        try:
            built = await backend.build(blended)
        except RequestError as refused:
            assert "Use the exact composition" in str(refused)
            with pytest.raises(RequestError, match="Use the exact composition"):
                await run(backend, SHORT, QUESTIONS, blended)
            return
        assert built.chunk_keys == () and built.tokens == (await backend.count([whole]))[0]
        (row,) = await run(backend, SHORT, QUESTIONS[:1], blended)
        assert row.finish is Finish.LENGTH and row.usage.cached_tokens >= built.tokens
        (row,) = await run(backend, SHORT, QUESTIONS[:1], whole)
        assert row.usage.cached_tokens < built.tokens
        await backend.forget([blended])

    async def test_progress_rises_to_the_end(self, backend: Backend) -> None:
        seen: list[tuple[int, int]] = []
        built = await backend.build(BOOK, progress=lambda ready, total: seen.append((ready, total)))
        assert [ready for ready, _ in seen] == sorted(ready for ready, _ in seen)
        assert seen[-1] == (built.tokens, built.tokens)

    async def test_a_build_that_is_too_long_is_refused(self, backend: Backend) -> None:
        with pytest.raises(ContextTooLong, match=r"\d"):
            await backend.build(Prefix("word and " * backend.info.limit))

    async def test_a_built_prefix_is_not_computed_again(self, backend: Backend) -> None:
        built = await backend.build(BOOK)
        for row in await run(backend, SHORT, QUESTIONS):
            assert row.finish is Finish.LENGTH
            assert row.usage.cached_tokens >= built.tokens

    async def test_what_is_forgotten_is_not_in_memory(self, backend: Backend) -> None:
        first = await backend.build(BOOK)
        await run(backend, SHORT, QUESTIONS[:1], OTHER)
        await backend.forget([BOOK, Prefix("Never read.")])
        again = await backend.build(BOOK)
        assert again.loaded_tokens + again.computed_tokens > first.tokens // 2
        await backend.forget([])
        assert (await backend.build(BOOK)).computed_tokens == 0

    async def test_forgetting_disturbs_no_row(self, backend: Backend) -> None:
        want = [row.tokens for row in await run(backend, SHORT, QUESTIONS)]
        got: list[list[int]] = [[] for _ in QUESTIONS]
        async for news in backend.submit(RequestBatch(SHORT, list(QUESTIONS), (BOOK,))):
            await backend.forget([BOOK])
            for j, row in enumerate(news.rows.tolist()):
                got[row] += news.tokens.row(j).tolist()
        assert got == want
        assert [row.tokens for row in await run(backend, SHORT, QUESTIONS)] == want

    async def test_without_reuse_everything_is_computed(self, backend: Backend) -> None:
        await backend.build(BOOK)
        cached = await run(backend, SHORT, QUESTIONS)
        alone = await collect(
            backend, RequestBatch(SHORT, list(QUESTIONS), prefixes=(BOOK,), reuse=False)
        )
        for warm, cold in zip(cached, alone, strict=True):
            assert cold.usage.cached_tokens == 0
            prompt = warm.usage.cached_tokens + warm.usage.computed_tokens
            assert cold.usage.computed_tokens == prompt
            assert cold.usage.context_tokens == warm.usage.context_tokens

    async def test_every_row_ends_once(self, backend: Backend) -> None:
        batch = RequestBatch(Generate(max_tokens=5, logprobs=True), list(QUESTIONS), (BOOK,))
        ended: list[int] = []
        async for news in backend.submit(batch):
            check_columns(news)
            ended += [int(r) for r, f in zip(news.rows, news.finish, strict=True) if f]
        assert sorted(ended) == [0, 1, 2]

    async def test_an_empty_batch_has_no_news(self, backend: Backend) -> None:
        assert await collect(backend, RequestBatch(SHORT, [], (BOOK,))) == []

    @pytest.mark.parametrize("work", [Generate(max_tokens=0), Choose(()), Choose(("yes", "yes"))])
    async def test_an_empty_batch_is_refused_as_one_with_rows(
        self, backend: Backend, work: Generate | Choose
    ) -> None:
        with pytest.raises(RequestError):
            await collect(backend, RequestBatch(work, [], (BOOK,)))

    async def test_lengths_are_kept(self, backend: Backend) -> None:
        for row in await run(backend, SHORT, QUESTIONS):
            assert len(row.tokens) == row.usage.output_tokens == SHORT.max_tokens
            assert row.finish is Finish.LENGTH

    async def test_a_question_never_sees_another(self, backend: Backend) -> None:
        together = [r.tokens for r in await run(backend, SHORT, QUESTIONS)]
        alone = [(await run(backend, SHORT, [q]))[0].tokens for q in reversed(QUESTIONS)]
        assert together == alone[::-1]

    async def test_rows_of_different_prefixes(self, backend: Backend) -> None:
        which = np.array([0, 1, -1], np.int32)
        batch = RequestBatch(SHORT, [QUESTIONS[0]] * 3, (BOOK, OTHER), which)
        rows = await collect(backend, batch)
        counts = [*(await backend.count([BOOK, OTHER])), 0]
        assert [row.usage.context_tokens for row in rows] == counts
        assert rows[0].tokens == (await run(backend, SHORT, QUESTIONS[:1]))[0].tokens
        assert rows[1].tokens == (await run(backend, SHORT, QUESTIONS[:1], OTHER))[0].tokens

    async def test_logprobs_when_asked_for(self, backend: Backend) -> None:
        work = Generate(max_tokens=6, ignore_eos=True, logprobs=True)
        for row in await run(backend, work, QUESTIONS):
            assert len(row.logprobs) == len(row.tokens) == 6
            assert max(row.logprobs) <= 1e-6
        assert (await run(backend, SHORT, QUESTIONS))[0].logprobs == []

    async def test_a_seed_repeats(self, backend: Backend) -> None:
        work = Generate(max_tokens=8, sampling=Sampling(temperature=1.0, seed=7), ignore_eos=True)
        first, second = [await run(backend, work, QUESTIONS) for _ in range(2)]
        assert [r.tokens for r in first] == [r.tokens for r in second]

    async def test_stop_strings_end_the_text_before_them(self, backend: Backend) -> None:
        long = Generate(max_tokens=24, ignore_eos=True)
        (free,) = await run(backend, long, QUESTIONS[:1])
        stop = free.text[len(free.text) // 2]
        work = Generate(max_tokens=24, ignore_eos=True, stop=(stop,))
        (row,) = await run(backend, work, QUESTIONS[:1])
        assert (row.text, row.finish) == (free.text.partition(stop)[0], Finish.STOP)

    async def test_output_obeys_a_schema(self, backend: Backend) -> None:
        schema = {
            "type": "object",
            "properties": {"there": {"type": "boolean"}},
            "required": ["there"],
            "additionalProperties": False,
        }
        (row,) = await run(backend, Generate(max_tokens=64, schema=schema), QUESTIONS[2:])
        if row.finish is Finish.STOP:
            assert isinstance(json.loads(row.text)["there"], bool)
        else:  # cut off by the token limit: incomplete, and said so
            assert row.finish is Finish.LENGTH

    async def test_choose_gives_a_distribution(self, backend: Backend) -> None:
        work = Choose(("yes", "no", "not stated"))
        for row in await run(backend, work, QUESTIONS):
            assert not row.error and row.usage.output_tokens == 0
            assert len(row.label_probs) == 3 and sum(row.label_probs) == pytest.approx(1, abs=1e-4)
            assert 0 < row.mass <= 1 + 1e-4

    async def test_loglikelihood_of_a_continuation(self, backend: Backend) -> None:
        work = LogLikelihood(["On floor 4.", "On hook 33, by the door."])
        rows = await run(backend, work, QUESTIONS[:2])
        for row in rows:
            assert not row.error
            assert len(row.logprobs) == len(row.tokens) > 0 and max(row.logprobs) <= 1e-6
        alone = LogLikelihood(["On hook 33, by the door."])
        again = await run(backend, alone, QUESTIONS[1:2])
        assert again[0].logprobs == pytest.approx(rows[1].logprobs, rel=1e-3, abs=1e-3)

    async def test_raw_prompts_as_text_and_as_tokens(self, backend: Backend) -> None:
        (text,) = await collect(backend, RequestBatch(SHORT, ["Once upon a time"], raw=True))
        ids = np.array(text.tokens, np.int32)
        ragged = Ragged(ids, np.array([0, len(ids)], np.int64))
        (row,) = await collect(backend, RequestBatch(SHORT, ragged, raw=True))
        assert row.usage.cached_tokens + row.usage.computed_tokens == len(ids)

    @pytest.mark.parametrize("what", BROKEN)
    async def test_malformed_batches_are_refused(self, backend: Backend, what: str) -> None:
        with pytest.raises(RequestError):
            await collect(backend, BROKEN[what])

    async def test_a_failed_row_is_alone(self, backend: Backend) -> None:
        questions = [QUESTIONS[0], "word and " * backend.info.limit, QUESTIONS[1]]
        rows = await run(backend, SHORT, questions)
        assert [row.finish for row in rows] == [Finish.LENGTH, Finish.ERROR, Finish.LENGTH]
        assert rows[1].error and not rows[0].error and not rows[2].error

    async def test_leaving_early_leaves_the_backend_usable(self, backend: Backend) -> None:
        long = Generate(max_tokens=200, ignore_eos=True)
        source = backend.submit(RequestBatch(long, list(QUESTIONS), (BOOK,)))
        async with aclosing(source) as news:  # type: ignore[type-var]
            async for _ in news:
                break
        (row,) = await run(backend, SHORT, QUESTIONS[:1])
        assert row.finish is Finish.LENGTH

    async def test_withdrawn_rows_end_and_others_end_well(self, backend: Backend) -> None:
        """A backend that does not listen runs them all."""
        leaving = Leaving()
        leaving.withdraw()
        batch = RequestBatch(SHORT, [*QUESTIONS] * 20, (BOOK,), leaving=leaving)
        rows = await collect(backend, batch)
        assert {row.finish for row in rows} <= {Finish.LENGTH, Finish.CANCELLED}
        assert not any(row.error for row in rows)
        (row,) = await run(backend, SHORT, QUESTIONS[:1])
        assert row.finish is Finish.LENGTH

    async def test_a_kept_turn_is_not_computed_again(self, backend: Backend) -> None:
        (head,) = await backend.count([BOOK])
        batch = RequestBatch(SHORT, [QUESTIONS[0]], (BOOK,), keep=True)
        (turn,) = await collect(backend, batch)
        history = (Message("user", QUESTIONS[0]), Message("assistant", turn.text))
        (row,) = await run(backend, SHORT, QUESTIONS[1:2], Prefix(BOOK.system, history))
        assert row.usage.cached_tokens > head

    async def test_closing_twice_is_closing(self, backend: Backend) -> None:
        await backend.close()
        await backend.close()


def check_columns(news: ResultBatch) -> None:
    """The columns of one piece of news have one length."""
    n = len(news.rows)
    assert len(news.texts) == len(news.tokens) == len(news.finish) == n
    assert news.usage.shape == (n, 4) and news.times.shape == (n, 3)
    assert news.logprobs is None or len(news.logprobs) == len(news.tokens.values)
    assert all(news.finish[list(news.rows).index(row)] is Finish.ERROR for row in news.errors)
