"""The facade for async code: the same engine, awaited, from any event loop and any thread.

    engine = preread.open()
    asks = [engine.aio.ask("handbook", question) for question in questions]
    answers = await asyncio.gather(*asks)

What is awaited at about the same time runs as one batch (contexts/crowd.py). Each answer comes when
it is ready, a failed one is an answer with an `error`, and cancelling a task frees its row at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from preread.app.answers import Answers
from preread.app.options import AnswerOptions, generate_work, texts
from preread.app.prompts import columns
from preread.backend import Backend, Generate, RequestBatch
from preread.contexts import ask as asking
from preread.contexts.ask import AskOptions
from preread.contexts.rows import gather
from preread.errors import StateError
from preread.types import Choice, Completion

if TYPE_CHECKING:
    from preread.app.context import Context
    from preread.app.engine import Engine
    from preread.app.prompts import ManyPrompts
    from preread.bridge import LoopThread

T = TypeVar("T")


class AsyncEngine:
    """`engine.aio`. May be used from several event loops and threads at once; it is closed with its
    engine."""

    def __init__(self, engine: Engine, crowd: Backend, loop: LoopThread) -> None:
        """crowd: the engine's backend, or one in front of it; loop: its event loop."""
        self._engine = engine
        self._crowd = crowd
        self._loop = loop
        self._opened: dict[str, Future[AsyncContext]] = {}
        self._guard = threading.Lock()

    async def ask(self, name: str, question: str, **options: Unpack[AnswerOptions]) -> Completion:
        """One answer from a context by name, which is opened at its first question (a later build
        of it is seen by `context`). Raises UnknownName, StateError."""
        context = await self._by_name(name)
        try:
            return await context.ask(question, **options)
        except StateError:  # expired or invalidated: the next question opens it anew
            self._opened.pop(name, None)
            raise

    async def context(
        self, name: str, *paths: str | os.PathLike[str], **options: Any
    ) -> AsyncContext:
        """See Engine.context."""
        return self._handle(await _aside(lambda: self._engine.context(name, *paths, **options)))

    async def open(self, target: str, **options: Any) -> AsyncContext:
        """See Engine.open."""
        return self._handle(await _aside(lambda: self._engine.open(target, **options)))

    @overload  # a str is a sequence of str, and means one prompt
    async def generate(  # type: ignore[overload-overlap]
        self, prompts: str, **options: Unpack[AnswerOptions]
    ) -> Completion: ...
    @overload
    async def generate(self, prompts: ManyPrompts, **options: Unpack[AnswerOptions]) -> Answers: ...
    async def generate(
        self, prompts: str | ManyPrompts, **options: Unpack[AnswerOptions]
    ) -> Completion | Answers:
        """See Engine.generate."""
        one = isinstance(prompts, str)
        rows = columns([prompts] if isinstance(prompts, str) else prompts)
        work = generate_work(options, self._engine.config.context.max_tokens)
        batch = RequestBatch(work, rows, raw=True)
        done = Answers(await self._loop.reach(gather(self._crowd, batch)))
        return done[0] if one else done

    async def _by_name(self, name: str) -> AsyncContext:
        """Opened once, however many ask at once; who cannot open it, tells."""
        while True:
            with self._guard:
                opening = self._opened.get(name)
                first = opening is None
                if opening is None:
                    opening = self._opened[name] = Future()
            if first:
                return await self._first(name, opening)
            try:
                return await asyncio.shield(asyncio.wrap_future(opening))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # else who was opening it has given up

    async def _first(self, name: str, opening: Future[AsyncContext]) -> AsyncContext:
        try:
            context = await self.open(name)
        except BaseException:
            self._opened.pop(name, None)
            opening.cancel()
            raise
        opening.set_result(context)
        return context

    def let_go(self, name: str) -> None:
        """The next question opens it anew."""
        with self._guard:
            self._opened.pop(name, None)

    def _handle(self, context: Context) -> AsyncContext:
        return AsyncContext(context, self._engine, self._crowd, self._loop)


class AsyncContext:
    """A context that can be asked any number of times, by any number of tasks at once."""

    def __init__(self, context: Context, engine: Engine, crowd: Backend, loop: LoopThread) -> None:
        self.opened = context.opened
        self._engine = engine
        self._crowd = crowd
        self._loop = loop

    async def ask(self, question: str, **options: Unpack[AnswerOptions]) -> Completion:
        """One answer. See Context.ask."""
        return (await self.ask_many([question], **options))[0]

    async def ask_many(
        self, questions: Sequence[str], **options: Unpack[AnswerOptions]
    ) -> list[Completion]:
        """See Context.ask_many."""
        asked, work = texts(questions, "questions"), self._work(options)
        return await self._loop.reach(
            asking.ask_many(self._crowd, self.opened, asked, work, self._asking)
        )

    async def stream(
        self, question: str, **options: Unpack[AnswerOptions]
    ) -> AsyncGenerator[str | Completion, None]:
        """The answer as it is written, then the Completion."""
        work = self._work(options)
        source = asking.stream(self._crowd, self.opened, question, work, self._asking)
        async with aclosing(self._loop.pull(source)) as told:
            async for news in told:
                yield news

    async def choose(self, question: str, labels: Sequence[str]) -> Choice:
        """Probabilities over labels. See Context.choose."""
        named = texts(labels, "labels")
        work = asking.choose(self._crowd, self.opened, [question], named)
        return (await self._loop.reach(work))[0]

    @property
    def _asking(self) -> AskOptions:
        return AskOptions(shards=self._engine.config.context.route_shards)

    def _work(self, options: AnswerOptions) -> Generate:
        return generate_work(options, self._engine.config.context.max_tokens)


async def _aside(work: Callable[[], T]) -> T:
    """A blocking call of the sync facade, beside the caller's loop."""
    return await asyncio.to_thread(work)
