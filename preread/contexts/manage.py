"""Looking after contexts: list, show, invalidate, remove, and what garbage collection may free."""

from __future__ import annotations

from dataclasses import dataclass

from preread.config import ContextSection
from preread.contexts.catalog.base import Catalog, ContextRecord, ContextSummary
from preread.contexts.names import joined_names, unknown_name
from preread.contexts.state import State, source_state, state_of
from preread.errors import UnknownName


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of `list`."""

    summary: ContextSummary
    state: State


@dataclass(frozen=True, slots=True)
class Shown:
    """A page of `show`. versions: those kept, newest first."""

    record: ContextRecord
    state: State
    versions: tuple[int, ...]
    sessions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Collected:
    """expired: names whose KV may go; versions: how many older versions went; live_chunks: hex keys
    that the store must keep. A build in another process stores chunks before it publishes, so a
    sweep leaves young chunks alone."""

    expired: tuple[str, ...]
    versions: int
    live_chunks: frozenset[str]


def list_contexts(
    catalog: Catalog, now: float, limits: ContextSection | None = None
) -> list[Listed]:
    """The newest version of every name. limits: given, the sources are read and compared, and a
    context whose files changed shows as stale; else only the catalog is asked."""
    listed = []
    for summary in catalog.summaries():
        state = state_of(summary, now)
        if limits and state.label == "fresh" and (record := catalog.get(summary.name)):
            state = source_state(record, now, limits)
        listed.append(Listed(summary, state))
    return listed


def show_context(catalog: Catalog, name: str, now: float, limits: ContextSection) -> Shown:
    """Raises UnknownName."""
    record = known(catalog, name)
    versions = (v for v in range(record.version - 1, 0, -1) if catalog.get(name, v))
    return Shown(
        record,
        source_state(record, now, limits),
        (record.version, *versions),
        tuple(catalog.sessions(name)),
    )


def known(catalog: Catalog, name: str) -> ContextRecord:
    """The newest version. Raises UnknownName."""
    record = catalog.get(name)
    if record is None:
        raise _unknown(catalog, name)
    return record


def invalidate_context(catalog: Catalog, name: str, reason: str) -> tuple[str, ...]:
    """The context is rebuilt before its next use, and so is every one that joins it with others
    (`handbook+prices`); returns the names of all of them. Raises UnknownName."""
    if not catalog.invalidate(name, reason):
        raise _unknown(catalog, name)
    joined = joining(catalog, name)
    return (name, *(other for other in joined if catalog.invalidate(other, reason)))


def joining(catalog: Catalog, name: str) -> tuple[str, ...]:
    """Names of kept contexts that hold the documents of this one and of others."""
    names = (summary.name for summary in catalog.summaries())
    return tuple(other for other in names if name in joined_names(other))


def erase(catalog: Catalog, scope: str) -> int:
    """Void the KV of a whole scope (see catalog/scopes.py) at once, in every tier and process; the
    texts stay. Returns its new epoch. Raises UsageError for what is not this tenant's to erase."""
    return catalog.bump(scope)


def remove_context(catalog: Catalog, name: str) -> int:
    """Forget all versions and sessions; returns how many versions went. Raises UnknownName."""
    removed = catalog.remove(name)
    if not removed:
        raise _unknown(catalog, name)
    return removed


def collect_garbage(catalog: Catalog, versions_kept: int, now: float) -> Collected:
    """Drop all but the newest `versions_kept` versions (of an expired context all but the newest),
    then say which chunks are still needed: those of versions that may still answer. The newest
    version of every name stays, and its sessions with it: text is small, and only `remove_context`
    forgets what people said."""
    expired: list[str] = []
    versions = 0
    for summary in catalog.summaries():
        over = summary.expires_at is not None and now >= summary.expires_at
        if over:
            expired.append(summary.name)
        below = summary.version - (1 if over else max(1, versions_kept)) + 1
        versions += catalog.remove(summary.name, below=below) if below > 1 else 0
    return Collected(tuple(expired), versions, catalog.live_chunks(now))


def _unknown(catalog: Catalog, name: str) -> UnknownName:
    return unknown_name(name, [summary.name for summary in catalog.summaries()])
