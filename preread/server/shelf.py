"""The contexts of one tenant, opened by name and kept until somebody changes them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from preread.backend import Backend
from preread.config import Config
from preread.contexts.catalog.base import Catalog, ContextRecord, ContextSummary
from preread.contexts.names import unknown_name
from preread.contexts.opened import Opened
from preread.contexts.opening import OpenOptions, open_context
from preread.errors import PrereadError

log = logging.getLogger("preread.server")
EVERY_S = 0.5
BY_NAME = OpenOptions(paths=False)


@dataclass(slots=True)
class _Held:
    """asked: when the catalog last said that it is the newest; looked: when its sources were last
    compared."""

    opened: Opened
    asked: float
    looked: float


class Shelf:
    """Opened contexts by name. A name is all that a request can say: never a path. What is held was
    the newest version of its name at most EVERY_S ago; that it may still answer at all is asked
    before each use (Opened.check). All methods from one event loop."""

    def __init__(
        self, backend: Backend, catalog: Catalog, config: Config, keep: Callable[[Opened], Opened]
    ) -> None:
        """keep: told of each opened context; what it returns is used."""
        self._backend = backend
        self._catalog = catalog
        self._config = config
        self._keep = keep
        self._held: dict[str, _Held] = {}
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._looking: dict[str, asyncio.Task[None]] = {}

    async def listed(self) -> list[ContextSummary]:
        """All that may be asked: what another model has read is not read again because somebody
        asks this one. Raises HomeError."""
        found = await asyncio.to_thread(self._catalog.summaries)
        return [summary for summary in found if self._ours(summary)]

    async def open(self, name: str) -> Opened:
        """A context as it is to be asked. Its first user waits while it is opened, and rebuilt
        where its sources changed; later such changes are looked for in the background, every
        `server.refresh_s`. Raises UnknownName, and what open_context raises."""
        held = self._held.get(name)
        if held is None or await self._outdated(held):
            lock = self._opening.setdefault(name, asyncio.Lock())
            async with lock:
                if (now := self._held.get(name)) is None or now is held:
                    now = await self._open(name)
                held = now
        elif self._due(held) and name not in self._looking:
            task = self._looking[name] = asyncio.create_task(self._look(name))
            task.add_done_callback(lambda _: self._looking.pop(name, None))
        return held.opened

    def let_go(self, name: str) -> None:
        """The next request opens it anew."""
        self._held.pop(name, None)

    async def close(self) -> None:
        """Nothing is looked for any more."""
        tasks = list(self._looking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ours(self, context: ContextSummary | ContextRecord) -> bool:
        identity = self._backend.info.fingerprint
        return identity == context.fingerprint or context.model == self._config.model.model

    async def _outdated(self, held: _Held) -> bool:
        """Whether there is another version by now. One asks, the others go on meanwhile."""
        now = time.monotonic()
        if now - held.asked < EVERY_S:
            return False
        held.asked = now
        record = held.opened.record
        asked = [(record.name, record.version)]
        (standing,) = await asyncio.to_thread(self._catalog.standing, asked)
        return standing.newest != record.version or bool(standing.invalidated)

    def _due(self, held: _Held) -> bool:
        every = self._config.server.refresh_s
        return every > 0 and time.monotonic() - held.looked >= every

    async def _open(self, name: str) -> _Held:
        now = time.monotonic()
        record = await asyncio.to_thread(self._catalog.get, name)
        if record is None or not self._ours(record):
            self.let_go(name)
            raise unknown_name(name, [summary.name for summary in await self.listed()])
        opened = await open_context(self._backend, self._catalog, name, self._config, BY_NAME)
        for note in opened.notes:
            log.warning("%s: %s", name, note)
        held = self._held[name] = _Held(self._keep(opened), now, now)
        return held

    async def _look(self, name: str) -> None:
        try:
            await self._open(name)
        except PrereadError as exc:  # who asks it next is told, if it cannot answer
            log.warning("%s: %s", name, exc)
            self.let_go(name)
