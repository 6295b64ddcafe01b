"""Handles of the facade: a context that is asked, and a session on top of it."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack, overload

from preread.app.options import AnswerOptions, generate_work, texts
from preread.app.relay import relayed
from preread.backend import Generate, Progress
from preread.contexts import ask as asking
from preread.contexts import warm as warming
from preread.contexts.ask import AskOptions
from preread.contexts.choices import Choices
from preread.contexts.opened import Opened
from preread.contexts.session import Session as AsyncSession
from preread.errors import RequestError
from preread.types import Built, Choice, Completion

if TYPE_CHECKING:
    from preread.app.engine import Engine


class Context:
    """A context that can be asked any number of times. Question 2 never sees question 1."""

    def __init__(self, engine: Engine, opened: Opened) -> None:
        self._engine = engine
        self.opened = opened

    @property
    def name(self) -> str:
        return self.opened.record.name

    @property
    def version(self) -> int:
        return self.opened.record.version

    @property
    def tokens(self) -> int:
        return self.opened.record.tokens

    def ask(self, question: str, **options: Unpack[AnswerOptions]) -> Completion:
        """One answer."""
        return self.ask_many([question], **options)[0]

    def ask_many(
        self, questions: Sequence[str], **options: Unpack[AnswerOptions]
    ) -> list[Completion]:
        """Answers in the order of the questions, computed as one batch. A failed one has
        finish_reason "error" and `.error`; the others are not touched."""
        engine, asked = self._engine, texts(questions, "questions")
        return engine.run(
            asking.ask_many(engine.backend, self.opened, asked, self._work(options), self._asking)
        )

    def stream(self, question: str, **options: Unpack[AnswerOptions]) -> Iterator[str | Completion]:
        """The answer as it is written, then the Completion."""
        engine = self._engine
        return engine.iterate(
            asking.stream(engine.backend, self.opened, question, self._work(options), self._asking)
        )

    @overload  # a str is a sequence of str, and means one question
    def choose(  # type: ignore[overload-overlap]
        self, questions: str, labels: Sequence[str]
    ) -> Choice: ...
    @overload
    def choose(self, questions: Sequence[str], labels: Sequence[str]) -> Choices: ...
    def choose(self, questions: str | Sequence[str], labels: Sequence[str]) -> Choice | Choices:
        """Probabilities over labels: one forward per question, nothing is decoded. One question
        gives one Choice, a list gives Choices: a sequence in its order that is kept as columns."""
        if not labels:
            raise RequestError("There are no labels.", hint='choose(question, ["yes", "no"])')
        many = texts([questions] if isinstance(questions, str) else questions, "questions")
        engine, named = self._engine, texts(labels, "labels")
        choices = engine.run(asking.choose(engine.backend, self.opened, many, named))
        return choices[0] if isinstance(questions, str) else choices

    def warm(self, lease_s: float = 0.0, progress: Progress | None = None) -> Built:
        """Load the context into memory, or compute what no tier has, before anybody asks. It stays
        for `lease_s` seconds (at least as configured) where memory allows."""
        engine = self._engine
        return engine.run(
            warming.warm(engine.backend, self.opened, lease_s=lease_s, progress=progress)
        )

    def warming(self, lease_s: float = 0.0) -> Iterator[tuple[int, int] | Built]:
        """`warm`, telling (tokens ready, tokens in all) while it goes on, and last what it took.
        Leaving early cancels it."""
        engine = self._engine

        def work(progress: Progress) -> Coroutine[Any, Any, Built]:
            return warming.warm(engine.backend, self.opened, lease_s=lease_s, progress=progress)

        return engine.iterate(relayed(work))

    def session(self, name: str) -> Session:
        """A named conversation on this context; it is kept in the home and sees its own turns."""
        engine = self._engine
        return Session(self, AsyncSession(engine.backend, engine.catalog, self.opened, name))

    @property
    def _asking(self) -> AskOptions:
        return AskOptions(shards=self._engine.config.context.route_shards)

    def _work(self, options: AnswerOptions) -> Generate:
        return generate_work(options, self._engine.config.context.max_tokens)


class Session:
    """A history on top of a context; see `preread.contexts.session`."""

    def __init__(self, context: Context, inner: AsyncSession) -> None:
        self._context = context
        self._inner = inner

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """(question, answer), oldest first."""
        return self._inner.turns()

    def ask(self, question: str, **options: Unpack[AnswerOptions]) -> Completion:
        """Answer with this session's turns in view, and add the turn. Raises ContextTooLong when
        the history has outgrown the model."""
        context = self._context
        return context._engine.run(
            self._inner.ask(question, context._work(options), context._asking)
        )

    def stream(self, question: str, **options: Unpack[AnswerOptions]) -> Iterator[str | Completion]:
        """Text as it is written, then the Completion."""
        context = self._context
        return context._engine.iterate(
            self._inner.stream(question, context._work(options), context._asking)
        )

    def fork(self, name: str, *, keep: int | None = None) -> Session:
        """A new session that begins with this one's turns (keep: only the last so many)."""
        return Session(self._context, self._inner.fork(name, keep=keep))
