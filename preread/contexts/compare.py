"""Is it worth it? Ways to answer from the same documents, side by side: the context as it is kept
(`cached`), the same prompts recomputed every time (`incontext`), and the passages that a search for
words finds (`bm25`). Every arm gets the same questions in the same order, one at a time, greedy;
the time to get ready is counted, and answers are taken as they are: no citing, no retry.

`cached` and `incontext` are the same computation by law 1, so their answers are compared, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from preread.backend import Backend, Generate, RequestBatch
from preread.contexts.ask import DEFAULT_SHARDS, AskOptions, ask
from preread.contexts.catalog.base import ContextRecord
from preread.contexts.compared import BM25, CACHED, INCONTEXT, Answer, ArmResult, Comparison
from preread.contexts.layout import lay_out, whole
from preread.contexts.opened import Opened
from preread.contexts.questions import Question
from preread.contexts.route import Embedder, SectionIndex
from preread.contexts.rows import collect
from preread.contexts.shard import merged
from preread.errors import EngineError, RequestError
from preread.front import Afresh
from preread.types import Completion, Finish, Prefix

PROBE = "?"  # the shortest question: what follows it is the prefix's own cost
Answerer = Callable[[str], Awaitable[Completion]]


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """arms: of ARMS; max_tokens: longest answer, the same for all; shards: most shards asked of a
    split context; top: passages of the bm25 arm; embedder: the one the context was built with, if
    any; tell: what goes on, for people; clock: seconds, monotonic."""

    arms: tuple[str, ...]
    max_tokens: int = 256
    shards: int = DEFAULT_SHARDS
    top: int = 5
    embedder: Embedder | None = None
    tell: Callable[[str], None] = field(default=lambda text: None)
    clock: Callable[[], float] = time.perf_counter


def parse_arms(text: str) -> tuple[str, ...]:
    """ "cached, bm25" -> names in this order. Raises RequestError naming the known ones."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        what = f"No arm is called {', '.join(map(repr, unknown))}" if unknown else "No arm is named"
        raise RequestError(f"{what}; there are: {', '.join(ARMS)}.", hint="--arms cached,incontext")
    return names


async def compare_arms(
    backend: Backend, record: ContextRecord, questions: Sequence[Question], options: CompareOptions
) -> Comparison:
    """Run the arms one after the other. The context is made ready first, and one throw-away row is
    run, so that no arm pays for a cold start; both are not timed. A failed row is an answer with an
    error. Raises EngineError when an arm cannot be built or none of its questions is answered."""
    if CACHED in options.arms:
        options.tell(f"making {record.name} ready ({record.tokens:,} tokens)")
        for shard in record.shards:
            await backend.build(Prefix(shard.system))
    await collect(backend, RequestBatch(Generate(max_tokens=1), [PROBE], reuse=False))
    bench = _Bench(backend, record, options, Generate(max_tokens=options.max_tokens))
    arms = [await _run(bench, name, questions) for name in options.arms]
    return Comparison(record, backend.info, tuple(questions), tuple(arms))


@dataclass(frozen=True, slots=True)
class _Bench:
    """What every arm works with."""

    backend: Backend
    record: ContextRecord
    options: CompareOptions
    work: Generate


async def _run(bench: _Bench, name: str, questions: Sequence[Question]) -> ArmResult:
    clock, tell = bench.options.clock, bench.options.tell
    tell(f"{name}: getting ready")
    started = clock()
    async with ARMS[name](bench) as (build_tokens, answerer):
        build_s = clock() - started
        tell(f"{name}: ready after {build_s:.2f} s, {len(questions):,} questions")
        answers = [await _answer(answerer, question, clock) for question in questions]
    if all(a.error for a in answers):
        raise EngineError(
            f"Arm {name} answered no question; the first one failed: {answers[0].error}",
            hint="Leave the arm out with --arms, or mend what the message names (bm25: --top).",
        )
    return ArmResult(name, build_s, build_tokens, tuple(answers))


async def _answer(answerer: Answerer, question: Question, clock: Callable[[], float]) -> Answer:
    started = clock()
    done = await answerer(question.text)
    seconds = clock() - started
    error = "" if done.finish_reason in (Finish.STOP, Finish.LENGTH) else done.error or "Cancelled."
    # What happens outside the backend (search, routing, layout) comes before the first token.
    after_first = (done.timing.total_ms - done.timing.ttft_ms) / 1000
    correct = question.grade(done.text)
    return Answer(
        text="" if error else done.text,
        correct=correct if correct is None or not error else False,
        seconds=seconds,
        ttft_s=max(0.0, seconds - after_first),
        usage=done.usage,
        error=error,
    )


@asynccontextmanager
async def _cached(bench: _Bench) -> AsyncIterator[tuple[int, Answerer]]:
    """The built context. Its build is measured now, whatever the record says: every prefix computed
    afresh, by a row with the shortest question, one output token and reuse=False. (So that last bit
    is counted too much, and writing the KV to a tier is not counted.)"""
    computed = 0
    with closing(_opened(bench)) as opened:
        for shard in bench.record.shards:
            batch = RequestBatch(
                Generate(max_tokens=1), [PROBE], prefixes=(Prefix(shard.system),), reuse=False
            )
            row = (await collect(bench.backend, batch))[0].completion()
            if row.error:
                raise EngineError(
                    f"{bench.record.name} could not be read afresh: {row.error}",
                    hint=f"preread verify {bench.record.name}",
                )
            computed += row.usage.computed_tokens
        yield computed, _asker(bench, bench.backend, opened)


@asynccontextmanager
async def _incontext(bench: _Bench) -> AsyncIterator[tuple[int, Answerer]]:
    """The prompts of `cached`, by the same routes, everything recomputed each time."""
    with closing(_opened(bench)) as opened:
        yield 0, _asker(bench, Afresh(bench.backend), opened)


@asynccontextmanager
async def _bm25(bench: _Bench) -> AsyncIterator[tuple[int, Answerer]]:
    """The `top` best sections by BM25 in the order of the documents, neighbours joined, laid out
    with the context's instructions as a prefix of their own that nothing else shares."""
    sources, top = bench.record.sources, bench.options.top

    def index_sources() -> SectionIndex:
        index = SectionIndex(sources, whole(sources))
        index.search("fill", 1)  # it is filled by its first search
        return index

    with closing(await asyncio.to_thread(index_sources)) as index:

        def found(question: str) -> str:
            hits = [hit.part for hit in index.search(question, top)]
            parts = merged(sorted(hits, key=lambda p: (p.source, p.start)), sources)
            return lay_out(bench.record.instructions, sources, parts).text

        async def answerer(question: str) -> Completion:
            text = await asyncio.to_thread(found, question)
            prefixes = (Prefix(text),) if text else ()
            batch = RequestBatch(bench.work, [question], prefixes=prefixes, reuse=False)
            return (await collect(bench.backend, batch))[0].completion()

        yield 0, answerer


Arm = Callable[[_Bench], AbstractAsyncContextManager[tuple[int, Answerer]]]
ARMS: Final = MappingProxyType[str, Arm]({CACHED: _cached, INCONTEXT: _incontext, BM25: _bm25})


def _opened(bench: _Bench) -> Opened:
    """The record opened for one arm alone, its routing index filled (part of the build). It does
    not expire: arms that are compared answer from the same version to the end."""
    record = replace(bench.record, expires_at=None)
    opened = Opened(record, embedder=bench.options.embedder)
    opened.router.route("fill", bench.options.shards)
    return opened


def _asker(bench: _Bench, backend: Backend, opened: Opened) -> Answerer:
    options = AskOptions(shards=bench.options.shards, cite=False)

    async def answerer(question: str) -> Completion:
        return await ask(backend, opened, question, bench.work, options)

    return answerer
