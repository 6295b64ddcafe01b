"""`preread verify --deep`: what the tiers hold of contexts, read as their next load would."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from preread.contexts.opened import Opened
from preread.contexts.state import state_of
from preread.store.auditing import together
from preread.store.upkeep import VerifyReport

if TYPE_CHECKING:
    from preread.app.engine import Engine
    from preread.contexts.catalog.base import ContextRecord


class Audited(NamedTuple):
    """left: (name, why) of contexts that no load would answer from."""

    report: VerifyReport
    left: tuple[tuple[str, str], ...]


def audit_contexts(engine: Engine, records: Sequence[ContextRecord]) -> Audited:
    """Contexts that this engine's model has read. Their tokens are laid out anew, from the texts in
    the catalog: what is verified is what belongs to these, whatever names the catalog has noted."""
    audit = getattr(engine._parts.backend, "audit", None)
    reports: list[VerifyReport] = []
    left: list[tuple[str, str]] = []
    for record in records:
        state = state_of(record, time.time(), engine.info.fingerprint)
        if audit is None or state.label != "fresh":
            why = state.reason if audit else f"{engine.info.name} keeps nothing here"
            left.append((record.name, why))
            continue
        opened = Opened(record)
        found = [engine.run(audit(opened.prefix(n))) for n in range(len(record.shards))]
        reports += [report for report in found if report is not None]
    return Audited(together(reports), tuple(left))
