"""The contexts that an engine has opened: how they come, and what is kept of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from preread.app.compose import Parts
from preread.app.events import Events
from preread.app.relay import relayed
from preread.backend import Backend, Progress
from preread.contexts.counting import Counting
from preread.contexts.opened import Opened
from preread.contexts.opening import OpenOptions, open_context


class Openings:
    """Owns: of every context what was opened last, and no more, so that opening a name a million
    times costs no memory."""

    def __init__(self, parts: Parts, backend: Backend, events: Events) -> None:
        """backend: what reads documents; events: told what is kept."""
        self._parts = parts
        self._backend = backend
        self._events = events
        self._last: dict[tuple[str, bool], Opened] = {}  # see Opened.key

    def open(self, target: str, options: OpenOptions) -> Coroutine[Any, Any, Opened]:
        """See open_context."""
        return open_context(self._backend, self._parts.catalog, target, self._parts.config, options)

    async def told(
        self, target: str, options: OpenOptions
    ) -> AsyncGenerator[str | tuple[int, int] | Opened, None]:
        """`open`, with what goes on: (tokens ready, tokens in all), then its notes, and last what
        was opened. Leaving early cancels it."""

        def work(progress: Progress) -> Coroutine[Any, Any, Opened]:
            return self.open(target, replace(options, progress=progress))

        async with aclosing(relayed(work)) as told:
            async for news in told:
                for text in news.notes if isinstance(news, Opened) else ():
                    yield text
                yield news

    def keep(self, opened: Opened) -> Opened:
        """What serves it: what was worked out for the same version before is used again, and of an
        older one freed."""
        self._events.guard(opened)
        before = self._last.get(opened.key)
        counting = before.counting if before else None
        opened.counting = counting or Counting(self._parts.metrics, opened.record.name)
        if before and before.same(opened):
            return before
        if before:
            before.close()
        self._last[opened.key] = opened
        return opened

    def close(self) -> None:
        """Free what was worked out."""
        for opened in self._last.values():
            opened.close()
