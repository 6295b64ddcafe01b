"""Somebody else's model as a Backend. Prefixes live on their side: building one means having it
read once, and every request repeats its bytes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from preread.backend import BackendInfo, Generate, Progress, RequestBatch, ResultBatch, no_blends
from preread.errors import ContextTooLong, EngineError, ProviderError, RequestError
from preread.prices import Prices
from preread.providers.dialect import Ask, Dialect, Facts, Said
from preread.providers.estimate import Estimate
from preread.providers.limits import Clock, WallClock
from preread.providers.rows import Asks, group_of, lead
from preread.providers.running import Running
from preread.providers.sender import Refused, Sender
from preread.providers.warmth import Warmth
from preread.providers.wire import LimitedWire
from preread.types import Built, Message, Prefix

if TYPE_CHECKING:
    from preread.types import Int32Array

UNKNOWN_LIMIT = 131_072  # tokens; where neither server nor table says
SIZES = 65_536  # prefixes whose counted length is remembered
TOUCH = (Message("user", "."),)  # what follows a prefix that is only to be read
READ = Generate(max_tokens=1)
SILENT = (
    "{} does not say what it reused: all of it counts as computed. Start vLLM with "
    "--enable-prompt-tokens-details, SGLang with --enable-cache-report."
)

log = logging.getLogger("preread")


class RemoteBackend:
    """See preread.backend.Backend. Use it in one event loop."""

    def __init__(
        self,
        dialect: Dialect,
        sender: Sender,
        facts: Facts,
        *,
        base: str,
        prices: Prices | None = None,
        clock: Clock | None = None,
    ) -> None:
        """facts: what `dialect.start` found; base: the server's URL, part of the identity."""
        self.facts = facts
        self._dialect = dialect
        self._sender = sender
        self._clock = clock or WallClock()
        traits = dialect.traits
        self._warmth = Warmth(traits.firsts, traits.ttl_s, self._clock)
        self._estimate = Estimate()
        self._wire = LimitedWire(dialect, sender, self._estimate, self._warmth)
        self._running: set[Running] = set()
        # Weak: a lock is there while somebody builds.
        self._building: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._kept: dict[str, asyncio.Task[None]] = {}
        self._told: set[str] = set()
        self._sizes = {"": 0}
        self._closed = False
        identity = sha256(f"{dialect.name}\0{base}\0{facts.model}".encode()).hexdigest()
        limit = facts.limit or UNKNOWN_LIMIT
        self._info = BackendInfo(
            name=dialect.name,
            model=facts.model,
            fingerprint=identity,
            limit=limit,
            effective_limit=limit,
            effective_known=False,
            kv_bytes_per_token=0,
            device=facts.server or base,
            dtype="unknown",
            prices=prices,
            min_prefix=traits.min_prefix,
            exact_counts=facts.exact,
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    async def count(self, prefixes: Sequence[Prefix], questions: Sequence[str] = ()) -> list[int]:
        rows = [lead(prefix) for prefix in prefixes]
        if questions:
            pairs = zip(rows, questions, strict=True)
            rows = [(*row, Message("user", question)) for row, question in pairs]
        return await self._counts(rows)

    async def build(
        self, prefix: Prefix, *, lease_s: float = 0.0, progress: Progress | None = None
    ) -> Built:
        self._open()
        if prefix.blend is not None:
            raise no_blends(self._info.name)
        messages = lead(prefix)
        group = group_of(messages)
        lock = self._building.setdefault(group, asyncio.Lock())
        async with lock:
            (tokens,) = await self._counts([messages])
            if tokens > self._info.limit:
                raise self._too_long(tokens)
            began, cached, computed = time.perf_counter(), tokens, 0
            if progress:
                progress(0, tokens)
            if group and not self._warmth.warm(group):
                said = await self._read(messages, group)
                if not self.facts.exact:
                    tokens = said.counts.prompt
                cached = min(said.counts.cached, tokens)
                computed = tokens - cached
            self._warn_if_short(tokens)
        if lease_s and self._dialect.traits.ttl_s:
            self._keep(messages, group, lease_s)
        if progress:
            progress(tokens, tokens)
        return Built(
            tokens=tokens,
            reused_tokens=cached,
            loaded_tokens=0,
            computed_tokens=computed,
            kv_bytes=0,
            load_ms=0.0,
            seconds=time.perf_counter() - began,
        )

    async def forget(self, prefixes: Sequence[Prefix]) -> None:
        """No provider lets one forget: what is no longer kept fresh is forgotten by itself."""
        self._open()
        for prefix in prefixes:
            group = group_of(lead(prefix))
            self._warmth.forget(group)
            if (task := self._kept.pop(group, None)) is not None:
                task.cancel()

    def prefill(self, tokens: Int32Array, *, store: bool = True) -> Built:
        """Raises RequestError: a token prefix can be made ready on our own engine alone."""
        raise RequestError(
            f"{self._info.name} cannot be given a prefix as tokens.", hint="Use a local model."
        )

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        self._open()
        asks = Asks(batch)
        if any(prefix.blend is not None for prefix in batch.prefixes):
            raise no_blends(self._info.name)
        if why := self._dialect.refuses(batch):
            raise RequestError(f"{self._info.name}: {why}.", hint="See docs/backends.md.")
        contexts = await self._counts([lead(prefix) for prefix in batch.prefixes])
        if batch.reuse and len(batch) > 1:
            for tokens in contexts:
                self._warn_if_short(tokens)
        running = Running(
            batch, asks, self._dialect, self._wire, self._warmth, self._estimate, contexts
        )
        self._running.add(running)
        news = running.rows()
        try:
            async for result in news:
                yield result
        finally:
            self._running.discard(running)
            if self._wire.silent:
                self._say(SILENT.format(self.facts.server or self._info.name))
            await news.aclose()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for running in list(self._running):
            running.cancel()
        for task in self._kept.values():
            task.cancel()
        with suppress(ProviderError):
            await self._dialect.close(self._wire)
        await self._sender.close()

    async def _counts(self, rows: list[tuple[Message, ...]]) -> list[int]:
        """Prompt tokens, asked once for what was not asked lately."""
        keys = [group_of(row) for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._sizes}
        if missing and self.facts.counts:
            counted = await self._counted(list(missing.values()))
            if counted is not None and len(self._sizes) + len(missing) <= SIZES:
                self._sizes.update(zip(missing, counted, strict=True))
        known = [self._sizes.get(key) for key in keys]
        return [
            self._estimate.tokens(row) if n is None else n
            for row, n in zip(rows, known, strict=True)
        ]

    async def _counted(self, rows: list[tuple[Message, ...]]) -> list[int] | None:
        """None where the server does not say, or not in a form that can be read: an estimate will
        do, and nothing ends for want of it."""
        try:
            return await self._dialect.count(rows, self._wire)
        except (ProviderError, LookupError, TypeError, ValueError) as exc:
            log.debug("not counted: %s", exc)
            return None

    async def _read(self, messages: tuple[Message, ...], group: str) -> Said:
        """Have a prefix read, as often as its server needs to remember it; the first answer."""
        first: Said | None = None
        while first is None or not self._warmth.warm(group):
            ask = Ask(READ, messages + TOUCH, len(messages), group)
            try:
                said = await self._dialect.answer(ask, self._wire)
            except Refused as exc:
                if exc.too_long:
                    raise self._too_long((await self._counts([messages]))[0]) from exc
                raise ProviderError(
                    f"{self._info.name} did not read the context: {exc.message}.",
                    hint="Mend what it says and try again.",
                ) from exc
            self._warmth.used(group)
            first = first or said
        return first

    def _keep(self, messages: tuple[Message, ...], group: str, lease_s: float) -> None:
        """Read a prefix again before its server forgets it, until the lease is over."""
        if (old := self._kept.pop(group, None)) is not None:
            old.cancel()
        until = self._clock.now() + lease_s

        async def keep() -> None:
            step = self._dialect.traits.ttl_s / 8
            while self._clock.now() < until:
                await self._clock.sleep(step)
                if not self._warmth.warm(group, ahead_s=2 * step):
                    with suppress(ProviderError, ContextTooLong):
                        await self._read(messages, group)

        self._kept[group] = asyncio.create_task(keep())

    def _warn_if_short(self, tokens: int) -> None:
        least = self._dialect.traits.min_prefix
        if 0 < tokens < least:
            self._say(
                f"{self._info.model} reuses beginnings of at least {least:,} tokens; "
                f"this one has about {tokens:,} and is read again for every request."
            )

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)

    def _too_long(self, tokens: int) -> ContextTooLong:
        return ContextTooLong(
            f"{tokens:,} tokens, and {self._info.model} takes {self._info.limit:,}.",
            hint="Split the documents.",
        )

    def _open(self) -> None:
        if self._closed:
            raise EngineError("The backend is closed.", hint="Open another one.")


def with_limit(facts: Facts, limit: int) -> Facts:
    """A table's limit where the server said none."""
    return facts if facts.limit else replace(facts, limit=limit)
