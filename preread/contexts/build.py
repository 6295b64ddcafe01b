"""Build a context: read the documents, fit them, have every shard read once, publish the version.

A rebuild keeps the order of the documents, so that the backend recomputes from the first changed
token only. Publishing is compare-and-swap; whoever loses the race takes what the winner published
if it says the same, else goes on top of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from preread.backend import Backend, Progress
from preread.config import Config
from preread.contexts.catalog.base import Catalog, ContextRecord, ShardRecord
from preread.contexts.changes import Changes, compare
from preread.contexts.fit import Fit
from preread.contexts.layout import DEFAULT_INSTRUCTIONS, Layout
from preread.contexts.names import check_name, joined_names
from preread.contexts.route import Embedder, embed_sections
from preread.contexts.shard import Plan, plan_shards
from preread.contexts.sources import Sources, in_order_of, read_sources
from preread.contexts.state import epochs_of, state_of
from preread.errors import CatalogConflict
from preread.store.reports import Miss
from preread.types import Brought, Built, Prefix, summed

RATE_SHARE = 0.5  # of the tokens must have been computed for their rate to describe the context


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build. name: of one context, or several that are joined; patterns: the PATH
    arguments; ttl_s: seconds until it expires, or until: when, of the clock of the build, None:
    never; force: publish a new version even if
    nothing changed; stdin: the bytes of "-"; sources: what was read already; on_plan: told the fit
    and the shards before anything is computed."""

    name: str
    patterns: tuple[str, ...]
    instructions: str = DEFAULT_INSTRUCTIONS
    ttl_s: float | None = None
    until: float | None = None
    force: bool = False
    stdin: bytes | None = None
    sources: Sources | None = None
    embedder: Embedder | None = None
    on_plan: Callable[[Plan], None] | None = None


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """What a build did. unchanged: the newest version already said this and was kept; changes:
    against the version before, None for the first one."""

    record: ContextRecord
    fit: Fit
    tokens: int
    reused_tokens: int
    loaded_tokens: int
    computed_tokens: int
    kv_bytes: int
    seconds: float
    unchanged: bool
    changes: Changes | None
    notes: tuple[str, ...]
    brought: Brought = field(default_factory=Brought)

    def describe(self) -> str:
        """ "3 of 40 files changed: 65 % reused"."""
        reused = f"{self.reused_tokens / self.tokens:.0%} reused".replace("%", " %")
        if self.unchanged:
            return f"nothing changed: version {self.record.version} is kept, {reused}"
        return f"{self.changes.describe()}: {reused}" if self.changes else reused

    def to_json(self) -> dict[str, Any]:
        """The documented object of `build --json`."""
        return {
            "name": self.record.name,
            "version": self.record.version,
            "tokens": self.tokens,
            "brought": self.brought.to_json(),
            "reused_tokens": self.reused_tokens,
            "computed_tokens": self.computed_tokens,
            "kv_bytes": self.kv_bytes,
            "seconds": round(self.seconds, 3),
            "fits": {
                "limit": self.fit.limit,
                "effective": self.fit.effective,
                "room": self.fit.room,
            },
            "shards": len(self.record.shards),
            "unchanged": self.unchanged,
            "changes": self.changes.describe() if self.changes else "",
            "notes": list(self.notes),
        }


async def build_context(
    backend: Backend,
    catalog: Catalog,
    request: BuildRequest,
    config: Config,
    progress: Progress | None = None,
    now: Callable[[], float] = time.time,
) -> BuildOutcome:
    """Raises UsageError for a bad name, SourceError for a bad document, ContextTooLong when no
    split can help, HomeError when the catalog cannot be written."""
    started = time.perf_counter()
    if request.sources is None or not joined_names(request.name):
        check_name(request.name)
    sources = await asyncio.to_thread(_read, request, config)
    previous = await asyncio.to_thread(catalog.get, request.name)
    if previous:
        sources = in_order_of(sources, previous.sources)
    plan = await plan_shards(
        backend, sources.records, request.instructions, config.context, previous
    )
    if request.on_plan:
        request.on_plan(plan)
    # Before anything is kept under them: a bump meanwhile shows at the next opening.
    asked = (catalog, config.store, backend.info.fingerprint)
    epochs = await asyncio.to_thread(epochs_of, *asked)
    built = await _build_shards(backend, plan, config.engine.lease_s, progress)
    record = await _record(backend, request, sources, plan, built, previous)
    record = replace(record, epochs=epochs, codec=config.store.codec)
    kept, published = await asyncio.to_thread(_publish, catalog, record, previous, request, now)
    total = summed(built)
    notes = sources.notes
    if not total.stored:
        notes += (f"not every tier keeps all of the KV: preread show {request.name}",)
    return BuildOutcome(
        record=kept,
        fit=plan.fit,
        tokens=total.tokens,
        reused_tokens=total.reused_tokens,
        loaded_tokens=total.loaded_tokens,
        computed_tokens=total.computed_tokens,
        kv_bytes=total.kv_bytes,
        seconds=time.perf_counter() - started,
        unchanged=not published,
        changes=compare(previous.sources, sources.records) if previous else None,
        notes=notes,
        brought=_explained(total.brought, previous, backend.info.fingerprint),
    )


def _explained(brought: Brought, previous: ContextRecord | None, identity: str) -> Brought:
    """The tiers cannot tell that what they hold of a context is another model's: the names of its
    chunks differ. The catalog can."""
    of_another = previous is not None and previous.fingerprint != identity
    if of_another and brought.miss == Miss.NEVER_STORED:
        return brought._replace(miss=Miss.OTHER_FINGERPRINT.value)
    return brought


def _read(request: BuildRequest, config: Config) -> Sources:
    return request.sources or read_sources(request.patterns, config.context, request.stdin)


async def _build_shards(
    backend: Backend, plan: Plan, lease_s: float, progress: Progress | None
) -> list[Built]:
    """One after the other: each has the whole machine. Progress counts over all shards."""
    built: list[Built] = []
    total = sum(plan.tokens)
    for i, layout in enumerate(plan.shards):
        before = sum(plan.tokens[:i])

        def report(ready: int, _of: int, before: int = before) -> None:
            if progress:
                progress(before + ready, total)

        prefix = Prefix(layout.text)
        built.append(await backend.build(prefix, lease_s=lease_s, progress=report))
    return built


async def _record(
    backend: Backend,
    request: BuildRequest,
    sources: Sources,
    plan: Plan,
    built: list[Built],
    previous: ContextRecord | None,
) -> ContextRecord:
    """The version to publish; its number and times are set when it is published."""
    shards = tuple(_shard(layout, b) for layout, b in zip(plan.shards, built, strict=True))
    parts = [part for shard in shards for part in shard.parts]
    embedding = None
    if request.embedder:
        embedding = await asyncio.to_thread(
            embed_sections, request.embedder, sources.records, parts
        )
    info = backend.info
    return ContextRecord(
        name=request.name,
        version=0,
        model=info.model,
        fingerprint=info.fingerprint,
        instructions=request.instructions,
        sources=sources.records,
        shards=shards,
        created_at=0.0,
        expires_at=None,
        patterns=sources.patterns,
        dtype=info.dtype,
        embedding=embedding,
        prefill_tok_s=_rate(summed(built), info.fingerprint, previous),
    )


def _shard(layout: Layout, built: Built) -> ShardRecord:
    return ShardRecord(
        system=layout.text,
        sources=tuple(dict.fromkeys(part.source for part in layout.parts)),
        tokens=built.tokens,
        kv_bytes=built.kv_bytes,
        chunk_keys=built.chunk_keys,
        parts=layout.parts,
    )


def _rate(total: Built, fingerprint: str, previous: ContextRecord | None) -> float:
    """Tokens per second of reading this context, measured now or inherited: a rebuild of its last
    few tokens says little about the whole."""
    seconds = total.seconds - total.load_ms / 1000
    if total.computed_tokens >= RATE_SHARE * total.tokens and seconds > 0:
        return total.computed_tokens / seconds
    same = previous is not None and previous.fingerprint == fingerprint
    return previous.prefill_tok_s if previous and same else 0.0


def _publish(
    catalog: Catalog,
    record: ContextRecord,
    newest: ContextRecord | None,
    request: BuildRequest,
    now: Callable[[], float],
) -> tuple[ContextRecord, bool]:
    """(the record that stands, whether it is ours)."""
    force = request.force
    while True:
        at = now()
        if newest and not force and _says_the_same(newest, record, request, at):
            return newest, False
        expected = newest.version if newest else 0
        mine = replace(
            record,
            version=expected + 1,
            created_at=at,
            expires_at=request.until if request.ttl_s is None else at + request.ttl_s,
        )
        try:
            catalog.put(mine, expected=expected)
            return mine, True
        except CatalogConflict:
            newest = catalog.get(record.name)
            force = False  # what another process has just published is new


def _says_the_same(
    newest: ContextRecord, record: ContextRecord, request: BuildRequest, at: float
) -> bool:
    """Whether the newest version is valid and differs from ours in nothing but its age."""
    valid = state_of(newest, at).label == "fresh"
    ends, ttl_s = newest.expires_at, request.ttl_s
    lasts = None if ends is None else ends - newest.created_at
    same_end = ends == request.until if ttl_s is None else abs((lasts or 0.0) - ttl_s) < 1e-3
    aged = replace(
        record,
        version=newest.version,
        created_at=newest.created_at,
        expires_at=newest.expires_at,
        prefill_tok_s=newest.prefill_tok_s,
    )
    return valid and same_end and aged == newest
