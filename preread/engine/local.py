"""The local engine as a Backend: text at the top, one thread at the device."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from preread.backend import BackendInfo, Progress, RequestBatch, ResultBatch, no_blends
from preread.config import EngineSection
from preread.engine.agreeing import Shares
from preread.engine.blender import Blender
from preread.engine.build import Builder
from preread.engine.caller import Caller
from preread.engine.engine import Engine
from preread.engine.parity import parity, wider
from preread.engine.parts import Parts
from preread.engine.recipe import Recipes
from preread.engine.stream import Stream
from preread.engine.thread import EngineThread
from preread.errors import EngineError
from preread.metrics import Metrics
from preread.models.load import LoadedModel
from preread.store.claims import Claims
from preread.store.keys import fingerprint
from preread.store.store import Store
from preread.store.upkeep import VerifyReport
from preread.tokens.parity import ParityReport
from preread.tokens.reply import Replies
from preread.tokens.requests import Block, Part, Requests
from preread.tokens.texts import Texts
from preread.types import Built, Prefix

if TYPE_CHECKING:
    from preread.types import Int32Array

T = TypeVar("T")
BUILDS = 8  # at once; more wait

log = logging.getLogger("preread.engine")


class LocalBackend:
    """See preread.backend.Backend. Owns one engine thread until `close`."""

    def __init__(
        self,
        model: LoadedModel,
        store: Store | None,
        config: EngineSection,
        metrics: Metrics | None = None,
        *,
        name: str = "",
        parts: Parts | None = None,
        claims: Claims | None = None,
        hides: bool = False,
    ) -> None:
        """store: None keeps prefixes in memory only. name: what the user calls the model. parts:
        see Engine; closed with this. claims, hides: see Builder."""
        self.metrics = metrics or Metrics()
        self._model = model
        self._lease_s = config.lease_s
        self._closed = False
        self._callers: set[Caller] = set()  # of work that is under way
        counted = Metrics() if hides else self.metrics  # steps say what was not computed
        engine = Engine(
            model.decoder, config, metrics=counted, parts=parts, kv_precision=model.kv_precision
        )
        self._parts = engine.parts
        self._alone = parts is None  # one device: the ranks of a group wait for nobody
        self._ahead = 2 * engine.config.max_sequences
        self._thread = EngineThread(engine)
        self._builder = Builder(self._thread, engine, store, self.metrics, claims, hides=hides)
        self._unstored = Builder(self._thread, engine, None, self.metrics)
        builders = self._builder, self._unstored
        blends = (self._thread, engine, model.decoder, model.chat, builders, config.lease_s)
        self._hides = hides
        self._blender = None if parts or hides else Blender(*blends, self.metrics)
        self._workers = ThreadPoolExecutor(BUILDS, "preread-build")
        self._cleaner = ThreadPoolExecutor(1, "preread-forget")  # waits for no build
        self._requests = Requests(
            model.text, model.decoder.vocab_size, model.stop_ids, config.private_tokens
        )
        self._texts = Texts(model.tokenizer)
        self._info = _info(model, name, engine.arena.token_bytes)

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def _blends(self) -> Blender:
        if self._blender is None:
            hides = "A process with store.constant_time"  # to store a part takes time that shows
            raise no_blends(hides if self._hides else "A model on several devices")
        return self._blender

    async def count(self, prefixes: Sequence[Prefix], questions: Sequence[str] = ()) -> list[int]:
        return await asyncio.to_thread(self._model.chat.counts, prefixes, questions)

    async def build(
        self, prefix: Prefix, *, lease_s: float = 0.0, progress: Progress | None = None
    ) -> Built:
        def work(caller: Caller) -> Built:
            if prefix.blend is not None:
                lease = max(lease_s, self._lease_s)
                return self._blends.build(prefix, lease, caller, progress)
            tokens = self._model.chat.prefix(prefix)
            return self._builder.build(tokens, max(lease_s, self._lease_s), caller, progress)

        return await self._aside(work)

    async def forget(self, prefixes: Sequence[Prefix]) -> None:
        def work() -> None:
            for prefix in prefixes:
                tokens = self._model.chat.prefix(prefix)
                if prefix.blend is not None:
                    tokens = self._blends.recipes.of(prefix).tokens
                self._thread.call(partial(_forget, tokens))

        if self._closed:
            raise EngineError("The engine was closed.", hint="Open another one.")
        await asyncio.get_running_loop().run_in_executor(self._cleaner, work)

    async def audit(self, prefix: Prefix) -> VerifyReport | None:
        """Read what the tiers hold of a prefix as a load would; None where nothing is kept."""
        return await self._aside(lambda _: self._builder.audit(self._model.chat.prefix(prefix)))

    def prefill(self, tokens: Int32Array, *, store: bool = True) -> Built:
        """Make a raw token prefix ready, as `build` does for a Prefix; sync. store: use the
        tiers."""
        builder = self._builder if store else self._unstored
        tokens = np.asarray(tokens, np.int32)
        return builder.build(tokens, self._lease_s, Caller())

    def parity(self, prompts: int = 8, seed: int = 0) -> ParityReport:
        """Measure law 1 on these weights with random prompts; sync, needs an idle engine and memory
        for a second, wider copy of the weights."""
        reference = wider(self._model)
        return self._thread.call(
            lambda engine: parity(engine, reference, prompts=prompts, seed=seed)
        )

    async def agreement(self, prefix: Prefix, turns: Sequence[tuple[str, Sequence[int]]]) -> Shares:
        """How far a blend agrees with exact KV of its tokens, at each token of questions and of the
        answers (tokens) that were given to them. Raises as `build` does."""

        def work(caller: Caller) -> Shares:
            return self._blends.agreement(prefix, turns, caller)

        return await self._aside(work)

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        replies = Replies(batch, self._model.tokenizer, self._texts, time.perf_counter())
        blocks = self._requests.blocks(batch)
        if any(prefix.blend is not None for prefix in batch.prefixes):
            blocks = _marked(blocks, self._blends.recipes)
        first = await asyncio.to_thread(next, blocks)  # raises what is wrong with the whole batch
        stream = Stream(self._thread)
        if batch.leaving is not None:
            batch.leaving.listen(stream.leave, stream.withdraw)
        feed = asyncio.create_task(self._feed(first, blocks, stream, replies))
        try:
            while not replies.finished:
                part, news = await stream.inbox.get()
                if (result := replies.take(part, news)) is not None:
                    stream.moved.set()
                    yield result
                if part is not None:
                    stream.finish(part, replies.stopped)
        finally:
            stream.close()
            feed.cancel()

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._thread.stop)
        for caller in tuple(self._callers):  # there is nothing left to load to
            caller.hurry()
        await asyncio.to_thread(self._parts.close)
        self._workers.shutdown(wait=False)
        self._cleaner.shutdown(wait=False)
        await asyncio.to_thread(self._builder.close)

    async def _feed(
        self, block: Block | None, blocks: Iterator[Block], stream: Stream, replies: Replies
    ) -> None:
        """Start the rows of every block, while the next one is encoded. No sooner than the one
        before has few left: a large batch must not stand in line many times at once."""
        starts: list[asyncio.Task[None]] = []
        begun = 0
        try:
            while block is not None:
                parts, errors = block
                if errors:
                    stream.inbox.put_nowait((None, errors))
                begun += len(errors) + sum(len(part.rows) for part in parts)
                starts += [asyncio.create_task(self._start(p, stream, replies)) for p in parts]
                block = await asyncio.to_thread(next, blocks, None)
                while block is not None and begun - replies.ended > self._ahead:
                    stream.moved.clear()
                    await stream.moved.wait()
            await asyncio.gather(*starts)
        except Exception as exc:  # a bug in encoding: say so instead of hanging
            log.exception("a batch could not be encoded")
            stream.inbox.put_nowait((None, exc))
        finally:
            for start in starts:
                start.cancel()

    async def _start(self, part: Part, stream: Stream, replies: Replies) -> None:
        """Submit the rows of a part, once their prefix is in memory."""
        try:
            if not await asyncio.wrap_future(stream.submit_resident(part)):
                await self._aside(lambda caller: self._prepare(part, stream, replies, caller))
        except Exception as exc:
            stream.tell(part, exc)

    def _prepare(self, part: Part, stream: Stream, replies: Replies, caller: Caller) -> None:
        assert part.prefix is not None
        kept = part.batch.keep  # a session's turns are not stored
        if part.asked is not None and part.asked.blend is not None:
            kept, ready = True, self._blends.prepare(part.asked, caller)  # nor is what is no KV
        else:
            tail = stream.tail(part) if self._alone else None
            ready = self._builder.prepare(part.prefix, caller, stores=not kept, tail=tail)
        try:
            replies.loaded(part.rows, ready.brought)
            if ready.brought.by_layer:
                stream.let(part)
            else:
                self._thread.call(lambda engine: stream.submit(engine, part, ready.computed))
            news = ready.computed or ready.brought.tokens  # or brought: nearer tiers lack it
            if news and not kept:  # while the rows run, a tier gets what it lacked
                self._builder.save(part.prefix, ready.reading)
        finally:
            self._builder.release(ready, self._lease_s)

    async def _aside(self, work: Callable[[Caller], T]) -> T:
        """Run blocking work in a thread; when the caller is cancelled, the work is told."""
        if self._closed:
            raise EngineError("The engine was closed.", hint="Open another one.")
        caller = Caller()
        self._callers.add(caller)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._workers, work, caller)
        finally:
            self._callers.discard(caller)
            caller.leave()


def _marked(blocks: Iterator[Block], recipes: Recipes) -> Iterator[Block]:
    """Blocks whose rows on blended prefixes stand under the names of these."""
    return (([*map(recipes.marked, parts)], errors) for parts, errors in blocks)


def _forget(tokens: Int32Array, engine: Engine) -> None:
    engine.tree.forget(tokens)


def _info(model: LoadedModel, name: str, kv_bytes_per_token: int) -> BackendInfo:
    """name: what the user calls the model."""
    limit = model.decoder.max_positions
    return BackendInfo(
        name="local",
        model=name or model.folder.name,
        fingerprint=fingerprint(model.fingerprint_parts),
        limit=limit,
        effective_limit=model.effective_context or limit,
        effective_known=model.effective_context is not None,
        kv_bytes_per_token=kv_bytes_per_token,
        device=str(model.decoder.device),
        dtype=model.dtype,
    )
