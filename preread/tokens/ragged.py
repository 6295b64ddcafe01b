"""Rows of unequal length in one array: what is done to all of them at once, without a loop."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from preread.backend import Ragged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from preread.types import Int64Array


def spread(counts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """counts [2, 3] -> owners [0, 0, 1, 1, 1] and columns [0, 1, 0, 1, 2]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, ranges(np.zeros(len(counts), np.int64), counts)


def ranges(starts: Int64Array, counts: Int64Array) -> Int64Array:
    """starts [7, 0], counts [2, 3] -> [7, 8, 0, 1, 2]."""
    if len(counts) and counts.max() == counts.min() == 1:  # rows that decode
        return starts
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    places: Int64Array = np.arange(total) + np.repeat(starts - (ends - counts), counts)
    return places


def lengths(rows: Ragged) -> Int64Array:
    """[n]"""
    return np.diff(rows.offsets)


def picked(rows: Ragged, which: Int64Array, skip: Int64Array | int = 0) -> Ragged:
    """The rows `which`, each without its first `skip` values; a copy where they do not lie side by
    side already."""
    starts, ends = rows.offsets[which] + skip, rows.offsets[which + 1]
    sizes = ends - starts
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    if len(which) and (starts[1:] == ends[:-1]).all():
        return Ragged(rows.values[starts[0] : ends[-1]], offsets)
    return Ragged(rows.values[ranges(starts, sizes)], offsets)


def stacked(rows: Sequence[list[int]]) -> Ragged:
    """Rows given one by one."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    return Ragged(np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])), offsets)


def beside(heads: Ragged, tails: Ragged) -> Ragged:
    """Each row of one, followed by that of the other."""
    sizes, more = lengths(heads), lengths(tails)
    offsets = np.concatenate(([0], np.cumsum(sizes + more)))
    values = np.empty(int(offsets[-1]), np.int32)
    values[ranges(offsets[:-1], sizes)] = heads.values[ranges(heads.offsets[:-1], sizes)]
    values[ranges(offsets[:-1] + sizes, more)] = tails.values[ranges(tails.offsets[:-1], more)]
    return Ragged(values, offsets)


def joined(parts: Sequence[Ragged]) -> Ragged:
    """The rows of all parts, in order; at least one part."""
    if len(parts) == 1:
        return parts[0]
    sizes = np.concatenate([lengths(part) for part in parts])
    values = [part.values[part.offsets[0] : part.offsets[-1]] for part in parts]
    return Ragged(np.concatenate(values), np.concatenate(([0], np.cumsum(sizes))))


def distinct(column: NDArray[np.integer]) -> list[int]:
    """The values of a column, sorted; quick where all are equal."""
    if len(column) and bool((column == column[0]).all()):
        return [int(column[0])]
    values: list[int] = np.unique(column).tolist()
    return values


def counted(column: NDArray[np.integer]) -> list[tuple[int, int]]:
    """(value, how often) of a column, sorted by value."""
    if len(column) and (column == column[0]).all():
        return [(int(column[0]), len(column))]
    values, times = np.unique(column, return_counts=True)
    return list(zip(values.tolist(), times.tolist(), strict=True))
