"""The facade: a sync view of a Backend and a Catalog. It works without an event loop and inside one
(a notebook)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from preread.app.aio import AsyncEngine
from preread.app.answers import Answers
from preread.app.compose import Parts
from preread.app.context import Context
from preread.app.events import Events
from preread.app.openings import Openings
from preread.app.options import AnswerOptions, generate_work
from preread.app.prompts import columns
from preread.app.responding import with_responses
from preread.backend import (
    Backend,
    BackendInfo,
    LogLikelihood,
    Progress,
    RequestBatch,
)
from preread.bridge import LoopThread
from preread.config import Config
from preread.contexts.build import BuildOutcome, BuildRequest, build_context
from preread.contexts.catalog.base import Catalog
from preread.contexts.crowd import Crowd
from preread.contexts.layout import DEFAULT_INSTRUCTIONS
from preread.contexts.names import parse_ttl
from preread.contexts.opened import Opened
from preread.contexts.opening import OpenOptions
from preread.contexts.rows import collect, gather
from preread.home import check_writable
from preread.metrics import Metrics
from preread.types import Built, Completion, Likelihood

if TYPE_CHECKING:
    from preread.app.prompts import ManyPrompts
    from preread.contexts.route import Embedder
    from preread.contexts.shard import Plan
    from preread.contexts.watch import Change
    from preread.models.text import Text
    from preread.types import Int32Array

T = TypeVar("T")
Opening = str | tuple[int, int] | Context


class Engine:
    """A model that answers from contexts. May be used from several threads; close it, or use it as
    a context manager."""

    def __init__(
        self, parts: Parts, *, responses: bool = False, loop: LoopThread | None = None
    ) -> None:
        """loop: another engine's, which stops it."""
        self._parts = parts
        self._responses = responses
        self._backend = with_responses(parts.backend, parts.config, keep=responses)
        self._loop, self._own_loop = loop or LoopThread(), loop is None
        self._crowd = Crowd(self._backend)
        self._aio = AsyncEngine(self, self._crowd, self._loop)
        watched = (parts.catalog, parts.backend, self._loop, parts.scopes)
        self._events = Events(*watched, self._aio.let_go)
        self._openings = Openings(parts, self._backend, self._events)
        self._closed = False

    @property
    def backend(self) -> Backend:
        """Behind the response cache, where that is configured."""
        return self._backend

    @property
    def crowd(self) -> Backend:
        """The same, for requests that come one by one: they run together."""
        return self._crowd

    @property
    def text(self) -> Text | None:
        """Tokenizer and chat template of the local model; None where it is another's."""
        return self._parts.text

    @property
    def catalog(self) -> Catalog:
        return self._parts.catalog

    @property
    def config(self) -> Config:
        return self._parts.config

    @property
    def info(self) -> BackendInfo:
        return self._parts.backend.info

    @property
    def parameters(self) -> int:
        """Number of weights of the local model."""
        return self._parts.parameters

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should know about the model: why it is slower than it might be."""
        return self._parts.notes

    @property
    def metrics(self) -> dict[str, float]:
        """Counters since the engine was opened."""
        return self._parts.metrics.snapshot()

    @property
    def counters(self) -> Metrics:
        """What these are counted in."""
        return self._parts.metrics

    @property
    def aio(self) -> AsyncEngine:
        """The same engine for async code, from any event loop and thread."""
        return self._aio

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the async parts to its end."""
        return self._loop.run(work)

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """Pull an async stream of the async parts."""
        return self._loop.iterate(source)

    def build(
        self,
        name: str,
        *paths: str | os.PathLike[str],
        ttl: str = "",
        system: str = "",
        force: bool = False,
        stdin: bytes | None = None,
        embedder: Embedder | None = None,
        progress: Progress | None = None,
        on_plan: Callable[[Plan], None] | None = None,
    ) -> BuildOutcome:
        """Read documents once and publish them under a name. ttl: "7d"; embedder: its vectors of
        the sections are kept and help to route questions of a split context; on_plan: told the fit
        and the shards before anything is computed. Raises SourceError, ContextTooLong,
        UsageError, HomeError."""
        check_writable(self.config.home)
        request = BuildRequest(
            name=name,
            patterns=tuple(os.fspath(path) for path in paths),
            instructions=system or DEFAULT_INSTRUCTIONS,
            ttl_s=parse_ttl(ttl) if ttl else None,
            force=force,
            stdin=stdin,
            embedder=embedder,
            on_plan=on_plan,
        )
        outcome = self.run(
            build_context(self.backend, self.catalog, request, self.config, progress)
        )
        self._events.watch(outcome.record)
        return outcome

    def context(
        self,
        name: str,
        *paths: str | os.PathLike[str],
        ttl: str = "",
        system: str = "",
        embedder: Embedder | None = None,
        progress: Progress | None = None,
    ) -> Context:
        """A context by name. With paths it is built (a no-op when nothing changed), without it must
        exist. Raises UnknownName, SourceError, ContextTooLong."""
        if not paths:
            return self.open(name, embedder=embedder, progress=progress)
        outcome = self.build(
            name, *paths, ttl=ttl, system=system, embedder=embedder, progress=progress
        )
        opened = Opened(outcome.record, outcome.notes, embedder, catalog=self.catalog)
        return self._keep(opened)

    def open(
        self,
        target: str,
        *,
        on_note: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        stdin: bytes | None = None,
        embedder: Embedder | None = None,
        approximate: bool = False,
    ) -> Context:
        """The context of a name or a PATH: built when missing, rebuilt when its sources changed;
        on_note is told. approximate: of names joined by "+", put the KV together from what each has
        read alone, and say so with every answer."""
        options = OpenOptions(
            progress=progress, stdin=stdin, embedder=embedder, approximate=approximate
        )
        opened = self.run(self._openings.open(target, options))
        for text in opened.notes if on_note else ():
            on_note(text)  # type: ignore[misc]  # checked in the line above
        return self._keep(opened)

    def opening(
        self, target: str, *, stdin: bytes | None = None, approximate: bool = False
    ) -> Iterator[Opening]:
        """`open`, telling what goes on: notes, (tokens ready, tokens in all) while documents are
        read, and last the Context. Leaving early cancels the reading."""
        options = OpenOptions(stdin=stdin, approximate=approximate)
        for news in self.iterate(self._openings.told(target, options)):
            yield self._keep(news) if isinstance(news, Opened) else news

    @overload  # a str is a sequence of str, and means one prompt
    def generate(  # type: ignore[overload-overlap]
        self, prompts: str, **options: Unpack[AnswerOptions]
    ) -> Completion: ...
    @overload
    def generate(self, prompts: ManyPrompts, **options: Unpack[AnswerOptions]) -> Answers: ...
    def generate(
        self, prompts: str | ManyPrompts, **options: Unpack[AnswerOptions]
    ) -> Completion | Answers:
        """Continue plain prompts, no chat template: texts, or token ids as lists, arrays, a matrix
        or `Ragged` columns. What they share is found and computed once, however many beginnings
        there are and wherever they stand. A text gives one Completion; many prompts give Answers,
        a sequence of Completions in their order that is kept as columns (one list of token ids is
        one prompt). A failed row has finish_reason "error". Raises RequestError naming row and
        field."""
        one = isinstance(prompts, str)
        rows = columns([prompts] if isinstance(prompts, str) else prompts)
        work = generate_work(options, self.config.context.max_tokens)
        done = Answers(self.run(gather(self.backend, RequestBatch(work, rows, raw=True))))
        return done[0] if one else done

    @overload
    def loglikelihood(  # type: ignore[overload-overlap]
        self, prompts: str, continuations: str
    ) -> Likelihood: ...
    @overload
    def loglikelihood(
        self, prompts: Sequence[str], continuations: Sequence[str]
    ) -> list[Likelihood]: ...
    def loglikelihood(
        self, prompts: str | Sequence[str], continuations: str | Sequence[str]
    ) -> Likelihood | list[Likelihood]:
        """log P(continuation | prompt) of plain texts, one continuation per prompt; one forward,
        nothing is decoded. A failed row has `.error` and a logprob of nan. Raises RequestError
        naming row and field."""
        one = isinstance(prompts, str)
        rows = [prompts] if isinstance(prompts, str) else list(prompts)
        tails = [continuations] if isinstance(continuations, str) else list(continuations)
        batch = RequestBatch(LogLikelihood(tails), rows, raw=True)
        done = [row.likelihood() for row in self.run(collect(self.backend, batch))] if rows else []
        return done[0] if one else done

    def prefill(self, tokens: Int32Array, *, store: bool = True) -> Built:
        """Make a raw token prefix ready, as `context` does for documents. store: use the tiers."""
        return self._parts.backend.prefill(tokens, store=store)

    def beside(self, tenant: str, among: int) -> Engine:
        """An engine of another tenant on the same weights; to be closed before this one. See
        app.tenants.parts_for."""
        from preread.app.tenants import parts_for

        parts = parts_for(self._parts, tenant, among)
        return Engine(parts, responses=self._responses, loop=self._loop)

    def subscribe(self, told: Callable[[Change], None]) -> Callable[[], None]:
        """Be told what anybody does to contexts that this engine has opened or built: published,
        invalidated, removed, erased. Within a second, from a thread of the engine's; `told` must
        not wait for the engine. Returns what ends it."""
        return self._events.subscribe(told)

    def close(self) -> None:
        """Stop the engine and free its memory. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._events.close()
        self._openings.close()
        self._loop.run(self._backend.close())
        if self._own_loop:
            self._loop.stop()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, opened: Opened) -> Context:
        """A handle of what serves it, see Openings."""
        return Context(self, self._openings.keep(opened))
