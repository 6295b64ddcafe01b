"""What one tenant asks goes to the model, or to the context that it names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from preread.backend import Backend, Choose, Generate, LogLikelihood, Ragged, RequestBatch
from preread.config import Config
from preread.contexts import ask as asking
from preread.contexts.ask import AskOptions
from preread.contexts.rows import Row, collect, follow
from preread.errors import ContextTooLong, EngineError, ProviderError, StateError
from preread.front import Afresh
from preread.metrics import Metrics
from preread.server.asked import Asked, Counted
from preread.server.gate import Gate
from preread.server.refusal import Refusal, busy
from preread.server.replies import Result
from preread.server.shelf import Shelf
from preread.server.words import Words
from preread.tokens.ragged import stacked
from preread.types import Choice, Completion, Finish, Prefix


class Desk:
    """One tenant's engine and names. All methods from one event loop. words: None where tokens are
    another server's; metrics: counters of the engine."""

    def __init__(
        self,
        backend: Backend,
        shelf: Shelf,
        config: Config,
        *,
        name: str,
        words: Words | None,
        metrics: Metrics,
    ) -> None:
        """name: of the model itself, as requests name it."""
        self.backend = backend
        self.shelf = shelf
        self.name = name
        self.words = words
        self.metrics = metrics
        self.gate = Gate(config.server.max_requests)
        self._shards = config.context.route_shards

    async def answer(self, asked: Asked) -> list[Result]:
        """One result for each prompt. Raises Refusal and what the backend raises."""
        self._check(asked)
        if asked.model == self.name:
            results = await self._of_model(asked)
        else:
            results = [await self._of_context(asked)]
        for result in results:
            await self._sound(asked, result)
        return results

    async def stream(self, asked: Asked) -> AsyncGenerator[str | Completion, None]:
        """The answer to the only prompt as it is written, then the Completion. Leaving early ends
        the row."""
        self._check(asked)
        if len(asked.prompts) != 1:
            raise Refusal(400, "stream: one prompt at a time.", field="stream")
        assert isinstance(asked.work, Generate)
        if asked.model == self.name:
            source = self._stream_model(asked)
        else:
            source = self._stream_context(asked, asked.work)
        async with aclosing(source):
            async for news in source:
                if isinstance(news, Completion):
                    await self._sound(asked, news)
                yield news

    async def ids(self, asked: Asked) -> list[list[int]]:
        """The prompts as tokens. Encoded in a thread: everybody else's answers go on."""
        words = self._words("prompt")

        def encoded() -> list[list[int]]:
            return [
                words.encode(prompt, True) if isinstance(prompt, str) else prompt
                for prompt in asked.prompts
            ]

        return await asyncio.to_thread(encoded)

    async def tokens(self, counted: Counted) -> list[int]:
        """A text or a conversation in tokens. Raises Refusal, RequestError, UnknownName."""
        words = self._words("model")
        if counted.text is not None:
            return await asyncio.to_thread(words.encode, counted.text, counted.special)
        prefix = counted.prefix
        if counted.model != self.name:
            context = await self.shelf.open(counted.model)
            if len(context.record.shards) > 1:
                raise Refusal(
                    400, f"model: {counted.model!r} is split; what a question reads depends on it.",
                    field="model",
                )  # fmt: skip
            prefix = context.prefix(0, prefix.history, prefix.system)
        return await asyncio.to_thread(words.lay_out, prefix, counted.question)

    def _check(self, asked: Asked) -> None:
        """What this model cannot do is refused before anything is computed."""
        if isinstance(asked.work, Generate) and asked.work.logprobs:
            self._words("logprobs")
        ids = [("prompt", prompt) for prompt in asked.prompts if not isinstance(prompt, str)]
        if isinstance(asked.work, LogLikelihood) and isinstance(asked.work.continuations, Ragged):
            ids += [("continuation", row) for row in _rows(asked.work.continuations)]  # type: ignore[misc]
        for field, row in ids:
            if max(row) >= self._words(field).vocabulary:
                raise Refusal(400, f"{field}: {max(row)} is no token's id.", field=field)
        if asked.model == self.name:
            return
        if asked.form == "completion":
            raise Refusal(
                400,
                f"model: a context is asked by chat completions; prompts are for {self.name!r}.",
                field="model",
            )
        if isinstance(asked.work, LogLikelihood):
            raise Refusal(
                400, f"continuation: {self.name!r} scores them, no context.", field="continuation"
            )

    def _words(self, field: str) -> Words:
        if self.words is None:
            raise Refusal(400, f"{field}: the tokens of this model are not known.", field=field)
        return self.words

    async def _of_model(self, asked: Asked) -> list[Result]:
        if asked.echo:
            ids = await self.ids(asked)
            if short := [i for i, row in enumerate(ids) if len(row) < 2]:
                raise Refusal(400, f"prompt[{short[0]}]: echo needs two tokens.", field="prompt")
            work = LogLikelihood(stacked([row[1:] for row in ids]))
            batch = RequestBatch(work, stacked([row[:1] for row in ids]), raw=True)
            return [row.likelihood() for row in await collect(self.backend, batch)]
        rows = await collect(self.backend, _batch(asked))
        return [_result(asked, row) for row in rows]

    async def _of_context(self, asked: Asked) -> Result:
        (question,), work = asked.prompts, asked.work
        assert isinstance(question, str)
        for last in (False, True):
            context = await self.shelf.open(asked.model)
            try:
                options, backend = self._asking(asked), self._reusing(asked)
                if isinstance(work, Choose):
                    labels = work.labels
                    return (await asking.choose(backend, context, [question], labels, options))[0]
                assert isinstance(work, Generate)
                return await asking.ask(backend, context, question, work, options)
            except StateError:  # expired or invalidated since it was opened
                self.shelf.let_go(asked.model)
                if last:
                    raise
        raise AssertionError("the second time it was answered or raised")

    async def _stream_model(self, asked: Asked) -> AsyncGenerator[str | Completion, None]:
        row = Row()
        async with aclosing(follow(self.backend, _batch(asked), [row])) as texts:
            async for text in texts:
                yield text
        yield row.completion()

    async def _stream_context(
        self, asked: Asked, work: Generate
    ) -> AsyncGenerator[str | Completion, None]:
        question, begun = str(asked.prompts[0]), False
        for last in (False, True):
            context = await self.shelf.open(asked.model)
            options, backend = self._asking(asked), self._reusing(asked)
            try:
                source = asking.stream(backend, context, question, work, options)
                async with aclosing(source):
                    async for news in source:
                        begun = True
                        yield news
                return
            except StateError:
                self.shelf.let_go(asked.model)
                if last or begun:
                    raise

    def _asking(self, asked: Asked) -> AskOptions:
        history, system = asked.prefix.history, asked.prefix.system
        return AskOptions(self._shards, history=history, keep=asked.keep, system=system)

    def _reusing(self, asked: Asked) -> Backend:
        return self.backend if asked.reuse else Afresh(self.backend)

    async def _sound(self, asked: Asked, result: Result) -> None:
        """Raises what is wrong with a result that failed: too long, or refused by the template, is
        the caller's; the rest is ours."""
        cancelled = isinstance(result, Completion) and result.finish_reason is Finish.CANCELLED
        if cancelled:
            raise busy(503, "The engine ended this answer.")
        if not result.error:
            return
        if await self._longest(asked) > self.backend.info.limit:
            raise ContextTooLong(result.error)
        raise (EngineError if self.words is not None else ProviderError)(result.error)

    async def _longest(self, asked: Asked) -> int:
        """Tokens of the longest prompt and what was to come after it. Raises RequestError for what
        the template refuses."""
        work, beyond = asked.work, 0
        if isinstance(work, Generate):
            beyond = 0 if asked.echo else work.max_tokens
        elif self.words is not None:
            tails = work.labels if isinstance(work, Choose) else work.continuations
            beyond = await _most_tokens(_rows(tails), self.words)
        if asked.form == "completion":
            if self.words is None:
                return 0
            return beyond + await _most_tokens(asked.prompts, self.words)
        prefixes, prefix = [asked.prefix], asked.prefix
        if asked.model != self.name:
            context = await self.shelf.open(asked.model)
            shards = range(len(context.record.shards))
            prefixes = [context.prefix(i, prefix.history, prefix.system) for i in shards]
        questions = [str(asked.prompts[0])] * len(prefixes)
        return beyond + max(await self.backend.count(prefixes, questions))


def _rows(tails: Sequence[str] | Ragged) -> Sequence[str] | list[list[int]]:
    if isinstance(tails, Ragged):
        return [tails.row(i).tolist() for i in range(len(tails))]
    return tails


async def _most_tokens(texts: Sequence[str | list[int]], words: Words) -> int:
    """Of the longest."""

    def lengths() -> list[int]:
        return [len(words.encode(text, True) if isinstance(text, str) else text) for text in texts]

    return max(await asyncio.to_thread(lengths))


def _batch(asked: Asked) -> RequestBatch:
    texts = [prompt for prompt in asked.prompts if isinstance(prompt, str)]
    ids = [prompt for prompt in asked.prompts if not isinstance(prompt, str)]
    prefixes: Sequence[Prefix] = (asked.prefix,) if asked.prefix != Prefix("") else ()
    return RequestBatch(
        asked.work,
        stacked(ids) if ids else texts,
        tuple(prefixes),
        raw=asked.form == "completion",
        keep=asked.keep,
        reuse=asked.reuse,
    )


def _result(asked: Asked, row: Row) -> Result:
    if isinstance(asked.work, LogLikelihood):
        return row.likelihood()
    if isinstance(asked.work, Generate):
        return row.completion()
    end = row.completion()
    probabilities = dict(zip(asked.work.labels, row.label_probs, strict=not end.error))
    best = max(probabilities, key=lambda label: probabilities[label], default="")
    return Choice(
        best, probabilities, row.mass, row.usage, row.timing, error=end.error,
        cached_response=row.response,
    )  # fmt: skip
