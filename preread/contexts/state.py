"""Is a context still what its sources say? Cheap to import: `preread list` asks this."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

from preread.config import ContextSection, StoreSection
from preread.contexts.catalog.base import Catalog, ContextRecord, ContextSummary
from preread.contexts.catalog.scopes import scopes_of
from preread.contexts.changes import Changes, compare
from preread.contexts.sources import STDIN, Sources, read_sources
from preread.errors import SourceError

CLOCK_SKEW_S = 300.0  # machines that share a home may differ by this much
Label = Literal["fresh", "expired", "stale", "invalidated"]


@dataclass(frozen=True, slots=True)
class State:
    """label `stale`: the sources or the model changed. reason: for people, "" when fresh."""

    label: Label
    reason: str = ""


def epochs_of(catalog: Catalog, kept: StoreSection, fingerprint: str) -> int:
    """One number that grows with every epoch that voids its KV. Raises HomeError."""
    return sum(catalog.epochs(scopes_of(kept, fingerprint)))


def state_of(record: ContextRecord | ContextSummary, now: float, fingerprint: str = "") -> State:
    """What can be said without looking at the sources. fingerprint: of the model at hand."""
    if record.invalidated:
        return State("invalidated", record.invalidated)
    if record.expires_at is not None and now >= record.expires_at:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.expires_at))
        return State("expired", f"expired {when}")
    if record.expires_at is not None and now < record.created_at - CLOCK_SKEW_S:
        return State("expired", "built by a clock that was ahead: its age is unknown")
    if fingerprint and record.fingerprint != fingerprint:
        return State("stale", "read by another model")
    return State("fresh")


def reread(
    record: ContextRecord, limits: ContextSection
) -> tuple[Sources | None, Changes | None, str]:
    """The sources as they are now and what changed; or None and why they cannot be read. What came
    from standard input cannot change."""
    patterns = [pattern for pattern in record.patterns if pattern != STDIN]
    kept = tuple(source for source in record.sources if not source.origin)
    if not patterns:
        sources = Sources(record.sources, record.patterns)
        return sources, compare(record.sources, record.sources), ""
    try:
        found = read_sources(patterns, limits)
    except SourceError as exc:
        return None, None, str(exc)
    sources = replace(found, records=kept + found.records, patterns=record.patterns)
    return sources, compare(record.sources, sources.records), ""


def source_state(record: ContextRecord, now: float, limits: ContextSection) -> State:
    """The state including the sources: files are read and compared by digest."""
    state = state_of(record, now)
    if state.label != "fresh":
        return state
    _, changes, why = reread(record, limits)
    if changes is None:
        return State("stale", f"sources cannot be read: {why}")
    return State("stale", changes.describe()) if changes else state
