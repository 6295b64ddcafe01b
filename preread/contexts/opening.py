"""The one door by which everything is asked: a name or a path becomes an opened context, built or
rebuilt where needed, and the user is told."""

from __future__ import annotations

import asyncio
import glob
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from preread.backend import Backend, Progress
from preread.config import Config
from preread.contexts.blending import Joined, blend_contexts, join
from preread.contexts.build import BuildOutcome, BuildRequest, build_context
from preread.contexts.catalog.base import Catalog, ContextRecord
from preread.contexts.layout import DEFAULT_INSTRUCTIONS
from preread.contexts.names import derived_name, joined_names, stdin_name, unknown_name
from preread.contexts.opened import Blended, Opened
from preread.contexts.route import Embedder
from preread.contexts.shard import Plan
from preread.contexts.sources import STDIN, Sources, absolute
from preread.contexts.state import State, epochs_of, reread, state_of
from preread.errors import HomeError, SourceError, UsageError


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """instructions: other ones rebuild the context, "" leaves them as they are; approximate: of
    several joined contexts, put the KV together from theirs (docs/contexts.md); paths: False: the
    target is a name, whatever file may be called so (it comes from who must not read files);
    refresh:
    rebuild a stale one (else it answers as it is and a note says so); stdin: the bytes of target
    "-"; on_plan: told the fit and the shards before anything is computed; on_build: told what a
    build did."""

    instructions: str = ""
    approximate: bool = False
    paths: bool = True
    refresh: bool = True
    stdin: bytes | None = None
    embedder: Embedder | None = None
    progress: Progress | None = None
    on_plan: Callable[[Plan], None] | None = None
    on_build: Callable[[BuildOutcome], None] | None = None
    now: Callable[[], float] = field(default=time.time)


async def open_context(
    backend: Backend,
    catalog: Catalog,
    target: str,
    config: Config,
    options: OpenOptions | None = None,
) -> Opened:
    """The context of a name, of several joined by "+" (asked as one), or of a PATH (built when
    missing); a name goes before a path. A stale
    one is rebuilt first; if its sources are gone, it answers from the kept text and a note says so,
    unless it expired or was invalidated: then SourceError. Raises UnknownName with the names that
    come close."""
    options = options or OpenOptions()
    door = _Door(backend, catalog, config, options)
    blended: Blended | None = None
    if options.approximate:
        record, notes, blended = await door.blended(target)
    else:
        record, notes = await door.find(target)
    for used in blended.parts if blended else (record,):
        try:
            await asyncio.to_thread(catalog.touch, used.name, options.now())
        except HomeError as exc:
            notes.append(f"the use of {used.name!r} was not recorded: {exc.message}")
    clock = options.now
    return Opened(record, notes, options.embedder, catalog=catalog, now=clock, blended=blended)


@dataclass(frozen=True, slots=True)
class _Door:
    backend: Backend
    catalog: Catalog
    config: Config
    options: OpenOptions

    async def find(self, target: str) -> tuple[ContextRecord, list[str]]:
        """The record to ask and what the user should know about it."""
        if not self.options.paths:
            return await self._named(target)
        if target == STDIN:
            data = await asyncio.to_thread(self._stdin)
            return await self._build_new(stdin_name(data), (STDIN,), data)
        if names := await asyncio.to_thread(self._joined, target):
            return await self._composed(target, names)
        for name in (target, derived_name(target)):
            if record := await asyncio.to_thread(self.catalog.get, name):
                if name != target and record.patterns != (absolute(target),):
                    raise _taken(name, target)
                return await self._refreshed(record)
        if os.path.lexists(os.path.expanduser(target)) or "/" in target or glob.has_magic(target):
            return await self._build_new(derived_name(target), (target,))
        summaries = await asyncio.to_thread(self.catalog.summaries)
        raise unknown_name(target, [summary.name for summary in summaries])

    async def _named(self, name: str) -> tuple[ContextRecord, list[str]]:
        """A kept context, and no file. Raises UnknownName."""
        record = await asyncio.to_thread(self.catalog.get, name)
        if record is None:
            summaries = await asyncio.to_thread(self.catalog.summaries)
            raise unknown_name(name, [summary.name for summary in summaries])
        if parts := joined_names(name):
            return await self._composed(name, parts)
        return await self._refreshed(record)

    def _joined(self, target: str) -> tuple[str, ...]:
        """The names that a target joins, unless a file has that name. Raises UnknownName."""
        if not (names := joined_names(target)) or os.path.lexists(os.path.expanduser(target)):
            return ()
        known = [summary.name for summary in self.catalog.summaries()]
        for name in names:
            if name not in known:
                raise unknown_name(name, known)
        return names

    async def _composed(
        self, target: str, names: tuple[str, ...]
    ) -> tuple[ContextRecord, list[str]]:
        """One context of the documents of several, in their order: exact, as if it had been built
        from all of them. What it has in common with the first is read no second time."""
        _, joined = await self._parts(names)
        sources, instructions, notes, until = joined
        kept = await asyncio.to_thread(self.catalog.get, target)
        said = (sources.records, sources.patterns, instructions, until)
        if kept and (kept.sources, kept.patterns, kept.instructions, kept.expires_at) == said:
            if (await self._state(kept)).label == "fresh":
                return kept, notes
        outcome = await self._build(
            BuildRequest(target, (), instructions, until=until, sources=sources)
        )
        return outcome.record, [*notes, f"joined: {outcome.describe()}", *outcome.notes]

    async def blended(self, target: str) -> tuple[ContextRecord, list[str], Blended]:
        """The same, approximately, and what its KV is put together from."""
        if not (names := await asyncio.to_thread(self._joined, target)):
            raise UsageError(
                f"{target!r} is one context: there is nothing to approximate.",
                hint='preread ask NAME+NAME "question" --approximate',
            )
        parts, joined = await self._parts(names)
        asked = self.backend, target, parts, joined, self.config
        record, blended, plan = await blend_contexts(*asked)
        if self.options.on_plan:
            self.options.on_plan(plan)
        return record, joined.notes, blended

    async def _parts(self, names: tuple[str, ...]) -> tuple[list[ContextRecord], Joined]:
        """Each as it is to be asked, and all of them together."""
        found = [await self.find(name) for name in names]
        parts = [record for record, _ in found]
        joined = join(parts, self.options.instructions)
        notes = [note for _, more in found for note in more]
        return parts, joined._replace(notes=[*notes, *joined.notes])

    async def _state(self, record: ContextRecord) -> State:
        """Without looking at its sources."""
        identity = self.backend.info.fingerprint
        state = state_of(record, self.options.now(), identity)
        if state.label == "fresh":
            asked = (self.catalog, self.config.store, identity)
            if record.epochs < await asyncio.to_thread(epochs_of, *asked):
                return State("stale", "its KV was erased")
        return state

    async def _refreshed(self, record: ContextRecord) -> tuple[ContextRecord, list[str]]:
        """The record itself when it is fresh, else its successor."""
        state = await self._state(record)
        sources, changes, why = await asyncio.to_thread(reread, record, self.config.context)
        notes: list[str] = []
        if sources is None:
            if state.label in ("expired", "invalidated"):
                raise SourceError(
                    f"Context {record.name!r} cannot be rebuilt ({state.reason}): {why}",
                    hint=f"preread build {record.name} PATH…",
                )
            notes = [f"sources cannot be read, answering from the kept text: {why}"]
            sources = Sources(record.sources, record.patterns)
        instructions = self.options.instructions or record.instructions
        if state.label == "fresh":
            reasons = [changes.describe()] if changes else []
            reasons += ["the instructions changed"] * (instructions != record.instructions)
            if not reasons:
                return record, notes
            state = State("stale", ", ".join(reasons))
            if not self.options.refresh:
                note = f"{state.reason} since the build; answering from version {record.version}"
                return record, [note]
        if record.embedding and not self.options.embedder:
            notes.append(f"the vectors of {record.embedding.embedder!r} were not renewed")
        lasts = None if record.expires_at is None else record.expires_at - record.created_at
        request = BuildRequest(
            record.name, record.patterns, instructions, ttl_s=lasts, sources=sources
        )
        outcome = await self._build(request)
        notes.append(f"rebuilt: {outcome.describe()}" if changes else f"rebuilt: {state.reason}")
        return outcome.record, [*notes, *outcome.notes]

    async def _build_new(
        self, name: str, patterns: tuple[str, ...], stdin: bytes | None = None
    ) -> tuple[ContextRecord, list[str]]:
        instructions = self.options.instructions or DEFAULT_INSTRUCTIONS
        request = BuildRequest(name, patterns, instructions, stdin=stdin)
        outcome = await self._build(request)
        return outcome.record, list(outcome.notes)

    async def _build(self, request: BuildRequest) -> BuildOutcome:
        options = self.options
        request = replace(request, embedder=options.embedder, on_plan=options.on_plan)
        outcome = await build_context(
            self.backend, self.catalog, request, self.config, options.progress, options.now
        )
        if options.on_build:
            options.on_build(outcome)
        return outcome

    def _stdin(self) -> bytes:
        return sys.stdin.buffer.read() if self.options.stdin is None else self.options.stdin


def _taken(name: str, target: str) -> SourceError:
    return SourceError(
        f"{target}: its context would be named {name!r}, and the one of that name holds other "
        "documents.",
        hint=f"Ask that one by its name, or name this one: preread build NAME {target}",
    )
