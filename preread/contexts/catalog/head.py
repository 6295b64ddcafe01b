"""A name as the object-store catalog keeps it: one small object, so that its changes are atomic."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

from preread.contexts.catalog.base import ContextSummary, Standing
from preread.contexts.catalog.codec import read_summary


@dataclass(frozen=True, slots=True)
class Head:
    """What there is of a name. born: of this life of the name, so that sessions of an earlier one
    are not found; versions: version -> [summary, path of the record]."""

    born: str
    versions: dict[int, tuple[ContextSummary, str]] = field(default_factory=dict)

    @property
    def newest(self) -> int:
        return max(self.versions, default=0)


def standing_of(head: Head, version: int) -> Standing:
    kept = head.versions.get(version)
    return Standing(head.newest, kept[0].invalidated if kept else "")


def write_head(head: Head) -> bytes:
    """Like no other, so that a put whose reply was lost is known by it."""
    versions = {v: [asdict(summary), path] for v, (summary, path) in head.versions.items()}
    return json.dumps({"writer": uuid4().hex, "born": head.born, "versions": versions}).encode()


def read_head(data: bytes) -> Head:
    body: dict[str, Any] = json.loads(data)
    versions = body["versions"].items()
    return Head(body["born"], {int(v): (read_summary(s), path) for v, (s, path) in versions})
