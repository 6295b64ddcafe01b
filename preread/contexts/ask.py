"""Questions to an opened context. One batch for all questions and all shards they are routed to; a
failed row is an error of its own and never of its neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, overload

from preread.backend import Backend, BackendInfo, Choose, Generate, RequestBatch, ResultBatch
from preread.config import ContextSection
from preread.contexts.choices import Choices
from preread.contexts.merge import merge
from preread.contexts.opened import Opened
from preread.contexts.route import Route
from preread.contexts.rows import Row, as_rows, follow, gather
from preread.errors import RequestError
from preread.types import Choice, Completion, Finish, Message, Usage

if TYPE_CHECKING:
    from preread.types import Int32Array

BLOCK = 256  # questions whose answers are made at once
DEFAULT_SHARDS = ContextSection().route_shards


@dataclass(frozen=True, slots=True)
class AskOptions:
    """shards: most shards asked per question; cite: look the answers up in the sources; history:
    finished turns before the question; keep: leave the KV of question and answer behind for the
    next turn; system: the asker's own instructions, read after the context."""

    shards: int = DEFAULT_SHARDS
    cite: bool = True
    history: tuple[Message, ...] = ()
    keep: bool = False
    system: str = ""


@dataclass(frozen=True, slots=True)
class _Ask:
    """One question and the rows it became: rows[start:start + len(route.shards)]."""

    question: str
    route: Route
    start: int

    @property
    def shards(self) -> tuple[int, ...]:
        return self.route.shards

    @property
    def notes(self) -> tuple[str, ...]:
        return (self.route.note,) if self.route.note else ()


class _Alike(Sequence[_Ask]):
    """Questions that all take the same way, to the only shard."""

    def __init__(self, questions: Sequence[str], route: Route) -> None:
        self._questions = questions
        self._route = route

    def __len__(self) -> int:
        return len(self._questions)

    @overload
    def __getitem__(self, at: int) -> _Ask: ...
    @overload
    def __getitem__(self, at: slice) -> list[_Ask]: ...
    def __getitem__(self, at: int | slice) -> _Ask | list[_Ask]:
        if isinstance(at, slice):
            return [self[i] for i in range(len(self))[at]]
        return _Ask(self._questions[at], self._route, range(len(self))[at])


async def ask(
    backend: Backend,
    context: Opened,
    question: str,
    work: Generate | None = None,
    options: AskOptions | None = None,
) -> Completion:
    """One answer. See ask_many."""
    return (await ask_many(backend, context, [question], work, options))[0]


async def ask_many(
    backend: Backend,
    context: Opened,
    questions: Sequence[str],
    work: Generate | None = None,
    options: AskOptions | None = None,
) -> list[Completion]:
    """Answers in the order of the questions, each alone with the context: question 2 never sees
    question 1. Raises RequestError for an empty question, StateError when the context has expired
    or was invalidated since it was opened; errors while computing are in the results
    (finish_reason ERROR, `.error`)."""
    work, options = work or Generate(), options or AskOptions()
    asks, batch = await asyncio.to_thread(_plan, context, questions, work, options)
    if not questions:
        return []
    whole = await gather(backend, batch)
    _count(context, whole)

    def finished() -> Iterator[Completion]:
        for lo in range(0, len(asks), BLOCK):
            some = asks[lo : lo + BLOCK]
            start, stop = some[0].start, some[-1].start + len(some[-1].shards)
            rows = as_rows(whole, start, stop)
            for ask in some:
                at = ask.start - start
                mine = rows[at : at + len(ask.shards)]
                yield _finish(context, backend.info, ask, mine, work, options)

    return await asyncio.to_thread(list, finished())


async def stream(
    backend: Backend,
    context: Opened,
    question: str,
    work: Generate | None = None,
    options: AskOptions | None = None,
) -> AsyncGenerator[str | Completion, None]:
    """The answer as it is written, then the Completion. A question that goes to several shards has
    no text before all of them have answered, so it yields the Completion alone."""
    work, options = work or Generate(), options or AskOptions()
    asks, batch = await asyncio.to_thread(_plan, context, [question], work, options)
    rows = [Row() for _ in range(len(batch))]
    async with aclosing(follow(backend, batch, rows)) as texts:
        async for text in texts:
            if len(rows) == 1:
                yield text
    if (counting := context.counting) is not None:
        cached = sum(row.usage.cached_tokens for row in rows)
        counting.asked(len(rows), cached, sum(row.usage.computed_tokens for row in rows))
        counting.brought(row.timing.brought for row in rows if row.timing.brought)
    yield await asyncio.to_thread(_finish, context, backend.info, asks[0], rows, work, options)


async def choose(
    backend: Backend,
    context: Opened,
    questions: Sequence[str],
    labels: Sequence[str],
    options: AskOptions | None = None,
) -> Choices:
    """Probabilities over labels for every question. Of a split context the best routed shard
    alone decides: distributions over different documents have no common measure."""
    work, info = Choose(tuple(labels)), backend.info
    options = replace(options or AskOptions(), shards=1)
    asks, batch = await asyncio.to_thread(_plan, context, questions, work, options)
    whole = await gather(backend, batch)
    _count(context, whole)

    def made(i: int, row: Row) -> Choice:
        return _choice(context, info, asks[i], row, work.labels)

    return Choices(whole, work.labels, made)


def _plan(
    context: Opened, questions: Sequence[str], work: Generate | Choose, options: AskOptions
) -> tuple[Sequence[_Ask], RequestBatch]:
    context.check()
    for i, question in enumerate(questions):
        if not question.strip():
            raise RequestError(f"Question {i} is empty.", hint='preread ask NAME "question"')
    if len(context.record.shards) == 1:
        prefix = context.prefix(0, options.history, options.system)
        batch = RequestBatch(work, list(questions), (prefix,), keep=options.keep)
        return _Alike(questions, context.router.route("", 1)), batch
    asks: list[_Ask] = []
    start = 0
    for question in questions:
        route = context.router.route(_topic(question, options.history), options.shards)
        asks.append(_Ask(question, route, start))
        start += len(route.shards)
    used = sorted({shard for ask in asks for shard in ask.shards})
    place = {shard: i for i, shard in enumerate(used)}
    more = options.history, options.system
    prefixes = tuple(context.prefix(shard, *more) for shard in used)
    # Merging compares the answers' own probabilities.
    split = any(len(ask.shards) > 1 for ask in asks)
    if isinstance(work, Generate) and split:
        work = replace(work, logprobs=True)
    return asks, RequestBatch(
        work=work,
        prompts=[ask.question for ask in asks for _ in ask.shards],
        prefixes=prefixes,
        prefix_of=_int32([place[shard] for ask in asks for shard in ask.shards]),
        keep=options.keep,
    )


def _count(context: Opened, whole: ResultBatch) -> None:
    if (counting := context.counting) is not None:
        _, cached, computed, _ = whole.usage.sum(axis=0, dtype=int).tolist()
        counting.asked(len(whole.rows), cached, computed)
        counting.brought(whole.brought.values())


def _topic(question: str, history: Sequence[Message]) -> str:
    """What to route by: a follow-up ("and on Fridays?") leans on the questions before it."""
    asked = [message.content for message in history if message.role == "user"]
    return " ".join([*asked[-2:], question])


def _int32(values: list[int]) -> Int32Array:
    import numpy as np

    return np.array(values, dtype=np.int32)


def _finish(
    context: Opened,
    info: BackendInfo,
    ask: _Ask,
    rows: Sequence[Row],
    work: Generate,
    options: AskOptions,
) -> Completion:
    answers, done = [], (Finish.STOP, Finish.LENGTH)
    for row, shard in zip(rows, ask.shards, strict=True):
        answer = row.completion()
        found = answer.citations
        if options.cite and answer.finish_reason in done:
            found = context.evidence(shard).cite(answer.text, ask.question)
        timing = context.saved(answer.usage, answer.timing)
        notes = _beyond(info, answer.usage)
        answers.append(
            replace(answer, citations=found, context=context.ref, timing=timing, notes=notes)
        )
    read = [s for s, a in zip(ask.shards, answers, strict=True) if a.finish_reason in done]
    unread = context.unread(read or ask.shards)
    best = merge(answers, unread)
    notes = _approximate(context) + ask.notes
    if notes:
        best = replace(best, notes=notes + best.notes, approximate=context.approximate)
    return replace(best, logprobs=()) if best.logprobs and not work.logprobs else best


def _approximate(context: Opened) -> tuple[str, ...]:
    """A note on answers that stand on KV which is not exact."""
    return (str(context.approximate),) if context.approximate else ()


def _beyond(info: BackendInfo, usage: Usage) -> tuple[str, ...]:
    """A note when a long question or answer went further than the model is known to read well."""
    prompt = usage.cached_tokens + usage.computed_tokens
    tokens = prompt + usage.output_tokens
    if tokens <= info.effective_limit:
        return ()
    return (
        f"{tokens:,} tokens, of them {prompt - usage.context_tokens:,} for the question and "
        f"{usage.output_tokens:,} for the answer: {info.model} is known to read well up to "
        f"{info.effective_limit:,}",
    )


def _choice(
    context: Opened, info: BackendInfo, ask: _Ask, row: Row, labels: tuple[str, ...]
) -> Choice:
    end = row.completion()
    error = end.error or ("Cancelled." if end.finish_reason is Finish.CANCELLED else "")
    probabilities = {} if error else dict(zip(labels, row.label_probs, strict=True))
    return Choice(
        label=max(probabilities, key=lambda label: probabilities[label], default=""),
        probabilities=probabilities,
        mass=row.mass,
        usage=row.usage,
        timing=context.saved(row.usage, row.timing),
        context=context.ref,
        unread=context.unread(ask.shards),
        error=error,
        notes=_approximate(context) + ask.notes + _beyond(info, row.usage),
        approximate=context.approximate,
        cached_response=row.response,
    )
