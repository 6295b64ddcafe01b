"""A context that is ready to be asked: a record and what is worked out from it once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from preread.blends import Approximate
from preread.contexts.catalog.base import Catalog, ContextRecord, Part
from preread.contexts.cite import Evidence
from preread.contexts.counting import Counting
from preread.contexts.layout import GAP, file_line
from preread.contexts.route import Embedder, Router
from preread.contexts.state import state_of
from preread.errors import RequestError, StateError
from preread.types import ContextRef, Message, Prefix, Timing, Usage


class Blended(NamedTuple):
    """parts: the contexts whose KV a context is put together from."""

    approximate: Approximate
    parts: tuple[ContextRecord, ...]


class Opened:
    """One version of a context. notes: what the user should know about how it was opened; catalog:
    asked whether the version was invalidated meanwhile; now: the clock it expires by; blended: that
    its KV is put together from that of others."""

    def __init__(
        self,
        record: ContextRecord,
        notes: Sequence[str] = (),
        embedder: Embedder | None = None,
        *,
        catalog: Catalog | None = None,
        now: Callable[[], float] = time.time,
        blended: Blended | None = None,
    ) -> None:
        self.record = record
        self.approximate = blended.approximate if blended else None
        self.records = blended.parts if blended else (record,)  # what it stands on
        self.notes = tuple(notes)
        self._embedder = embedder
        self._catalog = catalog
        self._now = now
        self._evidence: dict[int, Evidence] = {}
        self.look: Callable[[], None] | None = None  # before each use, see Watcher.look
        self.counting: Counting | None = None

    def check(self) -> None:
        """Raises StateError when the context may not answer any more: it has expired, or was
        invalidated, since it was opened; HomeError when the catalog cannot say."""
        if self.look is not None:
            self.look()
        for record in self.records:
            state = state_of(record, self._now())
            if state.label == "expired":
                raise self._over(record, state.reason)
        held = [(record.name, record.version) for record in self.records]
        standings = self._catalog.standing(held) if self._catalog else ()
        for record, standing in zip(self.records, standings, strict=False):
            if standing.invalidated:
                raise self._over(record, f"invalidated: {standing.invalidated}")

    def _over(self, record: ContextRecord, reason: str) -> StateError:
        name, version = record.name, record.version
        return StateError(
            f"Context {name!r}, version {version}, must not answer any more ({reason}).",
            hint=f"Open it again, which rebuilds it: engine.open({self.record.name!r})",
        )

    def same(self, other: Opened) -> bool:
        """Whether what was worked out for one serves the other."""
        mine, theirs = (
            (x.ref, x.notes, x._embedder, x._catalog, x.approximate, x._stands_on)
            for x in (self, other)
        )
        return mine == theirs

    @property
    def _stands_on(self) -> list[ContextRef]:
        return [ContextRef(r.name, r.version, r.fingerprint) for r in self.records]

    @property
    def key(self) -> tuple[str, bool]:
        """Its name; a blend is another context than the exact one of that name."""
        return self.record.name, self.approximate is not None

    def prefix(self, shard: int, history: tuple[Message, ...] = (), system: str = "") -> Prefix:
        """What is read before a question to a shard. system: the asker's own instructions, which
        come after the context's text and leave what was read of that as it is. Raises RequestError
        where these would need KV that is put together anew."""
        blend = self.approximate.blend if self.approximate else None
        leading = self.record.shards[shard].system
        if system.strip():
            if blend is not None:
                raise RequestError(
                    "A context joined approximately takes no further instructions.",
                    hint="Put them into the question.",
                )
            leading = f"{leading.rstrip()}{GAP}{system.strip()}"
        return Prefix(leading, history, blend)

    @property
    def ref(self) -> ContextRef:
        return ContextRef(self.record.name, self.record.version, self.record.fingerprint)

    @cached_property
    def router(self) -> Router:
        return Router(self.record, self._embedder)

    def evidence(self, shard: int) -> Evidence:
        """What that shard's model has read, to cite from."""
        if shard not in self._evidence:
            parts = self.record.shards[shard].parts
            self._evidence[shard] = Evidence(self.record.sources, parts)
        return self._evidence[shard]

    def unread(self, shards: Sequence[int]) -> tuple[str, ...]:
        """Documents that none of these shards holds; of one read in part, the lines left out."""
        read = set(shards)
        left = [
            part
            for i, shard in enumerate(self.record.shards)
            if i not in read
            for part in shard.parts
        ]
        touched = {part.source for i in read for part in self.record.shards[i].parts}
        names = (self._name(part, whole=part.source not in touched) for part in left)
        return tuple(dict.fromkeys(names))

    def _name(self, part: Part, *, whole: bool) -> str:
        source = self.record.sources[part.source]
        if whole:
            return source.path
        return f"{source.path}:{file_line(source, part.start)}-{file_line(source, part.end - 1)}"

    def saved(self, usage: Usage, timing: Timing) -> Timing:
        """The timing with what the cached tokens would have cost at the rate this context was read
        with; 0 when that was never measured."""
        rate = self.record.prefill_tok_s
        saved = usage.cached_tokens / rate * 1000 - timing.load_ms if rate else 0.0
        return replace(timing, saved_ms=max(0.0, saved))

    def close(self) -> None:
        """Free the search index, if one was made."""
        if "router" in self.__dict__:
            self.router.close()
