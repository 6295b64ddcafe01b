"""A Backend in front of another one that answers what was asked before from what is kept."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np

from preread.backend import (
    Backend,
    Leaving,
    LogLikelihood,
    Ragged,
    RequestBatch,
    ResultBatch,
    SpendingOf,
)
from preread.errors import RequestError
from preread.front import Front
from preread.responses.book import Book, Vector
from preread.responses.keys import kept, keys, scope
from preread.responses.similar import Similar
from preread.tokens.merged import only
from preread.tokens.ragged import picked
from preread.tokens.requests import check
from preread.types import CachedResponse, Finish

T = TypeVar("T")
PUT = 512  # answers kept at once


@dataclass(slots=True)
class _Answer:
    """What is known of a row that runs; all of it once finish is there."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None
    probs: list[float] | None = None
    mass: float = 0.0
    greedy: bool = False

    def to_json(self) -> bytes:
        value = {
            "text": self.text, "tokens": self.tokens, "logprobs": self.logprobs,
            "finish": self.finish, "probs": self.probs, "mass": self.mass, "greedy": self.greedy,
        }  # fmt: skip
        return json.dumps(value).encode()

    @staticmethod
    def from_json(body: bytes) -> _Answer:
        value = json.loads(body)
        return _Answer(**value | {"finish": Finish(value["finish"])})


class Cached(Front):
    """See preread.backend.Backend; all methods from one event loop. The same requests without it
    are the slow twin. A row that is answered from the cache counts no token of any kind: none was
    computed, and none was found in a KV cache."""

    def __init__(
        self, backend: Backend, book: Book, similar: Similar | None = None, reads: str = ""
    ) -> None:
        """book: closed with this. similar: also answer from questions that are like this one.
        reads: what tells the backend's tokenizer and template from others, see keys.scope."""
        super().__init__(backend)
        self._reads = reads
        self._book = book
        self._similar = similar
        self._aside = ThreadPoolExecutor(1, "preread-responses")

    async def close(self) -> None:
        await super().close()
        if self._similar is not None:
            await self._similar.close()
        await self._do(self._book.close)
        self._aside.shutdown(wait=False)

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        began, prefix_of = time.perf_counter(), check(batch)
        if self._similar is not None:
            self._similar.check(batch)
        if not (kept(batch) and len(batch)):  # one without a row asks whether it would be refused
            async with aclosing(self._source(batch)) as source:
                async for news in source:
                    yield news
            return
        names = await asyncio.to_thread(keys, self.info, batch, prefix_of, self._reads)
        found = await self._found(names)
        served = {row: (found[name], CachedResponse()) for row, name in enumerate(names)
                  if name in found}  # fmt: skip
        vectors: dict[int, tuple[bytes, Vector]] = {}
        if self._similar is not None and not batch.raw:
            vectors = await self._vectors(batch, prefix_of, names, served)
            served |= await self._alike(vectors)
        if served:
            yield _served(batch, served, time.perf_counter() - began)
        rows = np.array([row for row in range(len(batch)) if row not in served], np.int32)
        if len(rows):
            async with aclosing(self._run(batch, prefix_of, rows, names, vectors)) as source:
                async for news in source:
                    yield news

    async def _run(
        self, batch: RequestBatch, prefix_of: Any, rows: Any, names: list[bytes],
        vectors: dict[int, tuple[bytes, Vector]],
    ) -> AsyncGenerator[ResultBatch, None]:  # fmt: skip
        """The rows that nobody has answered; what they come to is kept."""
        running: dict[int, _Answer] = {row: _Answer() for row in rows.tolist()}
        ended: dict[int, bytes] = {}
        try:
            async with aclosing(self._source(_part(batch, prefix_of, rows))) as source:
                async for inner in source:
                    news = only(inner, np.arange(len(inner.rows)), rows[inner.rows])
                    ended |= _take(running, news)
                    yield news
                    if len(ended) >= PUT:
                        ended = await self._keep(ended, names, vectors)
        finally:
            if ended:
                await asyncio.shield(self._keep(ended, names, vectors))

    async def _keep(
        self, ended: dict[int, bytes], names: list[bytes],
        vectors: dict[int, tuple[bytes, Vector]],
    ) -> dict[int, bytes]:  # fmt: skip
        bodies = {names[row]: body for row, body in ended.items()}
        like = [vectors[row] for row in ended if row in vectors]
        await self._do(self._book.put, bodies, like)
        return {}

    async def _found(self, names: Sequence[bytes]) -> dict[bytes, _Answer]:
        bodies = await self._do(self._book.get, list(dict.fromkeys(names)))
        return {name: _Answer.from_json(body) for name, body in bodies.items()}

    async def _vectors(
        self, batch: RequestBatch, prefix_of: Any, names: list[bytes], served: dict[int, Any]
    ) -> dict[int, tuple[bytes, Vector]]:
        """Of the rows that are not answered yet."""
        assert self._similar is not None
        rows = [row for row in range(len(batch)) if row not in served]
        texts = [str(batch.prompts[row]) for row in rows] if rows else []  # type: ignore[index]
        made = await self._similar.embed(texts) if texts else []
        heads = [
            scope(self.info, batch.work, batch.raw, p, self._reads) for p in (*batch.prefixes, None)
        ]
        return {
            row: (self._similar.scope(heads[prefix_of[row]]), Vector(names[row], text, vector))
            for row, text, vector in zip(rows, texts, made, strict=True)
        }

    async def _alike(
        self, vectors: dict[int, tuple[bytes, Vector]]
    ) -> dict[int, tuple[_Answer, CachedResponse]]:
        """Rows for which a question is there that is like theirs."""
        assert self._similar is not None
        matches: dict[int, tuple[bytes, CachedResponse]] = {}
        for where in dict.fromkeys(where for where, _ in vectors.values()):
            there = await self._do(self._book.vectors, where)
            mine = {row: vector for row, (at, vector) in vectors.items() if at == where}
            matches |= self._similar.match(mine, there)
        found = await self._found([key for key, _ in matches.values()])
        return {row: (found[key], how) for row, (key, how) in matches.items() if key in found}

    def _source(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        return cast("AsyncGenerator[ResultBatch, None]", self._backend.submit(batch))

    async def _do(self, work: Callable[..., T], *values: object) -> T:
        """In the book's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, work, *values)


def _part(batch: RequestBatch, prefix_of: Any, rows: Any) -> RequestBatch:
    """Some rows of a batch as a batch."""
    prompts, work = batch.prompts, batch.work
    if isinstance(work, LogLikelihood):
        work = LogLikelihood(_some(work.continuations, rows))
    leaving = None
    if batch.leaving is not None:
        leaving, places = Leaving(), {row: i for i, row in enumerate(rows.tolist())}
        inner = leaving
        batch.leaving.listen(
            lambda row: inner.leave(places[row]) if row in places else None, inner.withdraw
        )
    spending = SpendingOf(batch.spending, rows.tolist()) if batch.spending is not None else None
    return replace(
        batch, work=work, prompts=_some(prompts, rows), prefix_of=prefix_of[rows], leaving=leaving,
        spending=spending,
    )  # fmt: skip


def _some(values: Sequence[str] | Ragged, rows: Any) -> Sequence[str] | Ragged:
    if isinstance(values, Ragged):
        return picked(values, rows.astype(np.int64))
    return [values[row] for row in rows.tolist()]


def _take(running: dict[int, _Answer], news: ResultBatch) -> dict[int, bytes]:
    """Add what is new; the answers that are now whole and may be kept."""
    ended = {}
    for j, row in enumerate(news.rows.tolist()):
        answer = running[row]
        a, b = news.tokens.offsets[j : j + 2].tolist()
        answer.text += news.texts[j]
        answer.tokens += news.tokens.values[a:b].tolist()
        if news.logprobs is not None:
            answer.logprobs += news.logprobs[a:b].tolist()
        if (finish := news.finish[j]) is None:
            continue
        answer.finish = finish
        answer.probs = None if news.label_probs is None else news.label_probs[j].tolist()
        answer.mass = 0.0 if news.mass is None else float(news.mass[j])
        answer.greedy = bool(news.is_greedy[j]) if news.is_greedy is not None else False
        if finish in (Finish.STOP, Finish.LENGTH):
            ended[row] = answer.to_json()
    return ended


def _served(
    batch: RequestBatch, served: dict[int, tuple[_Answer, CachedResponse]], seconds: float
) -> ResultBatch:
    """Answers that were kept, as news."""
    rows, n = sorted(served), len(served)
    answers = [served[row][0] for row in rows]
    sizes = np.cumsum([0, *(len(answer.tokens) for answer in answers)])
    values = [token for answer in answers for token in answer.tokens]
    logprobs = [value for answer in answers for value in answer.logprobs]
    probs = [answer.probs for answer in answers if answer.probs is not None]
    if len(logprobs) not in (0, len(values)) or len(probs) not in (0, n):
        raise RequestError("Kept answers of two kinds.", hint="Remove the response cache.")
    times = np.zeros((n, 3), np.float32)
    times[:, 1:] = seconds * 1e3
    return ResultBatch(
        rows=np.array(rows, np.int32),
        texts=[answer.text for answer in answers],
        tokens=Ragged(np.array(values, np.int32), sizes.astype(np.int64)),
        finish=[answer.finish for answer in answers],
        usage=np.zeros((n, 4), np.int32),
        times=times,
        logprobs=np.array(logprobs, np.float32) if logprobs else None,
        label_probs=np.array(probs, np.float32) if probs else None,
        mass=np.array([answer.mass for answer in answers], np.float32) if probs else None,
        is_greedy=[answer.greedy for answer in answers]
        if isinstance(batch.work, LogLikelihood)
        else None,
        responses={row: served[row][1] for row in rows},
    )
