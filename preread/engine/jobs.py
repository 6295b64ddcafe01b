"""A batch on its way through the engine. Its rows wait as positions in an array; only running rows
take a slot."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from preread.engine.reading import Reading
from preread.tokens.batch import Kind, TokenBatch

if TYPE_CHECKING:
    from preread.types import Int32Array, Int64Array


@dataclass(slots=True, eq=False)
class Group:
    """Rows of a job that begin alike, in admission order. reading: held while rows wait; charge:
    tokens of the beginning that its first row pays."""

    tokens: Int32Array
    rows: Int64Array
    charge: int = 0
    reading: Reading | None = None


class Job:
    """A batch on its way. groups: those with rows that have not been admitted, in order; open_rows:
    rows that have not ended; running: rows that hold a slot; admitted: rows that ever did; charge:
    tokens that the next row pays."""

    def __init__(self, number: int, batch: TokenBatch, rows: Int64Array) -> None:
        """rows: those that are to run."""
        self.number = number
        self.batch = batch
        self.kind = batch.kind
        self.open_rows = len(rows)
        self.running = self.admitted = 0
        self.charge = batch.charge
        self.groups = deque(Group(*parts) for parts in _grouped(batch, rows) if len(parts[1]))
        self.lengths = np.diff(batch.own.offsets) - (self.kind == Kind.LIKELIHOOD)


def _grouped(batch: TokenBatch, rows: Int64Array) -> list[tuple[Int32Array, Int64Array]]:
    group_of = batch.group_of[rows]
    counts = np.bincount(group_of + 1, minlength=len(batch.groups) + 1)
    parts = np.split(rows[np.argsort(group_of, kind="stable")], np.cumsum(counts)[:-1])
    return list(zip((np.empty(0, np.int32), *batch.groups), parts, strict=True))
