"""A transformers model as a Backend: text at the top, one thread at the model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from preread.backend import BackendInfo, Progress, RequestBatch, ResultBatch, no_blends
from preread.config import EngineSection
from preread.errors import EngineError
from preread.foreign.build import Builder
from preread.foreign.load import ForeignModel
from preread.foreign.memory import Memory
from preread.foreign.net import Ability
from preread.foreign.reader import Reader
from preread.foreign.rows import Rows
from preread.foreign.stream import Stream
from preread.foreign.worker import ModelThread
from preread.metrics import Metrics
from preread.store.store import Store
from preread.store.upkeep import VerifyReport
from preread.tokens.reply import Replies
from preread.tokens.requests import Part, Requests
from preread.tokens.texts import Texts
from preread.types import Built, Prefix

if TYPE_CHECKING:
    from preread.types import Int32Array

T = TypeVar("T")
BUILDS = 4  # callers that may wait for a prefix at once; more wait for those
NOTHING_APART = 1 << 30  # no prompt is long enough to be kept apart for its own sake


class ForeignBackend:
    """See preread.backend.Backend. Owns one thread until `close`."""

    def __init__(
        self,
        model: ForeignModel,
        stores: Sequence[Store],
        config: EngineSection,
        memory_bytes: int,
        metrics: Metrics | None = None,
        *,
        name: str = "",
    ) -> None:
        """stores: one per regime of the model (`ForeignModel.fingerprint`), () keeps prefixes in
        memory only; memory_bytes: for prefixes; name: what the user calls the model."""
        self.metrics = metrics or Metrics()
        self._model = model
        self._lease_s = config.lease_s
        self._closed = False
        net, token_bytes = model.net, model.net.layout.bytes_per_token if model.net.layout else 0
        memory = Memory(memory_bytes, token_bytes)
        reader = Reader(net, memory, config.prefill_chunk)
        self._thread = ModelThread()
        self._memory = memory
        self._rows = Rows(net, reader, memory, self.metrics, config.lease_s)
        shared = (self._thread, net, reader, memory)
        self._builder = Builder(*shared, stores, self.metrics, config.save_every_s)
        self._unstored = Builder(*shared, (), self.metrics, config.save_every_s)
        self._workers = ThreadPoolExecutor(BUILDS, "preread-build")
        self._cleaner = ThreadPoolExecutor(1, "preread-forget")  # waits for no build
        self._requests = Requests(model.text, net.vocab_size, model.stop_ids, NOTHING_APART)
        self._texts = Texts(model.text.tokenizer)
        self._info = BackendInfo(
            name="transformers",
            model=name or model.folder.name,
            fingerprint=model.fingerprint(),
            limit=net.limit,
            effective_limit=model.effective_context or net.limit,
            effective_known=model.effective_context is not None,
            kv_bytes_per_token=token_bytes,
            device=str(net.device),
            dtype=model.dtype,
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    async def count(self, prefixes: Sequence[Prefix], questions: Sequence[str] = ()) -> list[int]:
        return await asyncio.to_thread(self._model.text.chat.counts, prefixes, questions)

    async def build(
        self, prefix: Prefix, *, lease_s: float = 0.0, progress: Progress | None = None
    ) -> Built:
        _check([prefix])

        def work(gone: threading.Event) -> Built:
            tokens = self._model.text.chat.prefix(prefix)
            return self._builder.build(tokens, max(lease_s, self._lease_s), progress, gone)

        return await self._aside(work)

    async def forget(self, prefixes: Sequence[Prefix]) -> None:
        def work() -> None:
            for prefix in prefixes:
                self._memory.forget(self._model.text.chat.prefix(prefix))

        if self._closed:
            raise EngineError("The engine was closed.", hint="Open another one.")
        await asyncio.get_running_loop().run_in_executor(self._cleaner, work)

    async def audit(self, prefix: Prefix) -> VerifyReport | None:
        """Read what the tiers hold of a prefix as a load would; None where nothing is kept."""
        tokens = self._model.text.chat.prefix(prefix)
        return await self._aside(lambda _: self._builder.audit(tokens))

    def prefill(self, tokens: Int32Array, *, store: bool = True) -> Built:
        """Make a raw token prefix ready, as `build` does for a Prefix; sync. store: use the
        tiers."""
        builder = self._builder if store else self._unstored
        return builder.build(np.asarray(tokens, np.int32), self._lease_s, None, threading.Event())

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        _check(batch.prefixes)
        tokenizer = self._model.text.tokenizer
        replies = Replies(batch, tokenizer, self._texts, time.perf_counter())
        parts, errors = await asyncio.to_thread(self._requests.parts, batch)
        if errors:
            yield replies.failed(errors)
        stream = Stream(self._thread, self._rows)
        starts = [asyncio.create_task(self._start(part, stream, replies)) for part in parts]
        try:
            while not replies.finished:
                part, news = await stream.inbox.get()
                if (result := replies.take(part, news)) is not None:
                    yield result
                stream.finish(part, replies.stopped)
        finally:
            stream.close()
            for start in starts:
                start.cancel()

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._thread.stop)
        self._workers.shutdown(wait=False)
        self._cleaner.shutdown(wait=False)
        await asyncio.to_thread(self._builder.close)

    async def _start(self, part: Part, stream: Stream, replies: Replies) -> None:
        """Submit the rows of a part, once their prefix is in memory."""
        try:
            if part.prefix is None or self._model.net.ability is not Ability.KEEP:
                stream.submit(part, 0)
            else:
                await self._aside(lambda gone: self._prepare(part, stream, replies, gone))
        except Exception as exc:
            stream.tell(part, exc)

    def _prepare(self, part: Part, stream: Stream, replies: Replies, gone: threading.Event) -> None:
        assert part.prefix is not None
        ready = self._builder.prepare(part.prefix, self._lease_s, None, gone)
        replies.loaded(part.rows, ready.brought)
        stream.submit(part, ready.computed)
        # What a tier had lost is given back while the rows run; a session's turns are not kept.
        if (ready.computed or ready.brought.tokens) and not part.batch.keep:
            self._builder.save(part.prefix, ready)

    async def _aside(self, work: Callable[[threading.Event], T]) -> T:
        """Run blocking work in a thread; when the caller is cancelled, the work is told."""
        if self._closed:
            raise EngineError("The engine was closed.", hint="Open another one.")
        gone = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._workers, work, gone)
        finally:
            gone.set()


def _check(prefixes: Sequence[Prefix]) -> None:
    if any(prefix.blend is not None for prefix in prefixes):
        raise no_blends("The transformers backend")
