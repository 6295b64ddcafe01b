"""What differs between two sets of documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preread.contexts.catalog.base import SourceRecord


@dataclass(frozen=True, slots=True)
class Changes:
    """Paths, sorted; total: documents now. False when nothing changed."""

    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    total: int

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.removed)

    def describe(self) -> str:
        """ "3 of 40 files changed, 1 added, 2 removed"."""
        parts = []
        if self.changed or not self:
            parts.append(f"{len(self.changed)} of {self.total} files changed")
        if self.added:
            parts.append(f"{len(self.added)} added")
        if self.removed:
            parts.append(f"{len(self.removed)} removed")
        return ", ".join(parts)


def compare(before: Sequence[SourceRecord], after: Sequence[SourceRecord]) -> Changes:
    """By path and digest of the file's bytes."""
    old = {source.path: source.digest for source in before}
    new = {source.path: source.digest for source in after}
    return Changes(
        changed=tuple(sorted(path for path in old.keys() & new.keys() if old[path] != new[path])),
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        total=len(new),
    )
