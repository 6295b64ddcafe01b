"""What others do to contexts, as this engine sees it: memory is freed, subscribers are told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from preread.backend import Backend
from preread.bridge import LoopThread
from preread.contexts.catalog.base import Catalog, ContextRecord
from preread.contexts.opened import Opened
from preread.contexts.watch import Change, Watcher
from preread.errors import EngineError
from preread.types import Prefix

Told = Callable[[Change], None]

log = logging.getLogger("preread")


class Events:
    """Looks after the contexts an engine has opened or built. Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        backend: Backend,
        loop: LoopThread,
        scopes: Sequence[str],
        let_go: Callable[[str], None],
    ) -> None:
        """let_go: told the name of a context whose handles must be opened anew."""
        self._backend = backend
        self._loop = loop
        self._let_go = let_go
        self._lock = threading.Lock()
        self._held: dict[str, ContextRecord] = {}  # by name, what is in memory
        self._blends: dict[str, Opened] = {}  # by target, what is put together from others
        self._subscribers: list[Told] = []
        self._watcher = Watcher(catalog, self._changed, scopes=scopes)

    def watch(self, record: ContextRecord) -> None:
        """Its KV is in memory from now on."""
        with self._lock:
            self._held[record.name] = record
        self._watcher.hold(record.name, record.version)

    def guard(self, opened: Opened) -> None:
        """Watch it, and look before each use when nobody has looked lately."""
        opened.look = self._watcher.look
        for record in opened.records:
            self.watch(record)
        if opened.approximate:
            with self._lock:
                self._blends[opened.record.name] = opened

    def subscribe(self, told: Told) -> Callable[[], None]:
        """See Engine.subscribe."""
        with self._lock:
            self._subscribers.append(told)

        def leave() -> None:
            with self._lock, suppress(ValueError):
                self._subscribers.remove(told)

        return leave

    def close(self) -> None:
        """Nobody is told any more. Idempotent."""
        self._watcher.close()

    def _changed(self, change: Change) -> None:
        if change.kind == "erased":
            with self._lock:
                records, blends = list(self._held.values()), list(self._blends.values())
            self._forget(records, blends)
        elif change.kind != "published":
            self._let_go(change.name)
            with self._lock:
                record = self._held.get(change.name)
                gone = record is not None and record.version == change.version
                if gone:
                    del self._held[change.name]
                blends = [b for b in self._blends.values() if record in b.records] if gone else []
                for blend in blends:
                    del self._blends[blend.record.name]
            self._forget([record] if gone and record else [], blends)
        with self._lock:
            subscribers = list(self._subscribers)
        for told in subscribers:
            try:
                told(change)
            except Exception:  # one that fails must not keep the others from being told
                log.exception("a subscriber failed at %s", change)

    def _forget(self, records: Sequence[ContextRecord], blends: Sequence[Opened]) -> None:
        prefixes = [Prefix(shard.system) for record in records for shard in record.shards]
        prefixes += [b.prefix(shard) for b in blends for shard in range(len(b.record.shards))]
        with suppress(EngineError):  # closed meanwhile
            self._loop.run(self._backend.forget(prefixes))
