"""All rows at once, equal to one after another."""

from __future__ import annotations

import numpy as np
import pytest

from preread.backend import Ragged
from preread.tokens.ragged import (
    beside,
    counted,
    distinct,
    joined,
    lengths,
    picked,
    spread,
    stacked,
)


def rows_of(ragged: Ragged) -> list[list[int]]:
    return [ragged.row(i).tolist() for i in range(len(ragged))]


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_picked_and_joined(seed):
    make = np.random.default_rng(seed)
    rows = [make.integers(0, 99, n).tolist() for n in make.integers(0, 6, 9)]
    given = stacked(rows)
    assert rows_of(given) == rows and lengths(given).tolist() == [len(r) for r in rows]
    for which in (make.permutation(9)[:5], np.arange(3, 8), np.empty(0, np.int64)):
        skip = np.array([make.integers(0, len(rows[i]) + 1) for i in which], np.int64)
        assert rows_of(picked(given, which)) == [rows[i] for i in which]
        want = [rows[i][n:] for i, n in zip(which, skip, strict=True)]
        assert rows_of(picked(given, which, skip)) == want
    some = picked(given, np.array([2, 3, 4]))  # a view, whose values begin further on
    assert rows_of(joined([some, given, picked(given, np.array([8, 0]))])) == [
        *rows[2:5], *rows, rows[8], rows[0],
    ]  # fmt: skip


def test_rows_beside_rows():
    heads, tails = [[1, 2], [], [3], []], [[4], [5, 6], [], []]
    got = beside(stacked(heads), picked(stacked([[0], *tails]), np.arange(1, 5)))
    assert rows_of(got) == [[1, 2, 4], [5, 6], [3], []]


def test_neighbours_are_not_copied():
    given = stacked([[1, 2], [3], [4, 5]])
    assert np.shares_memory(picked(given, np.array([1, 2])).values, given.values)


def test_no_rows():
    assert rows_of(stacked([])) == [] == rows_of(joined([stacked([]), stacked([])]))


def test_counts_are_spread():
    owner, column = spread(np.array([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2] and column.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("column", [[], [4, 4, 4], [3, 1, 3, 2]])
def test_values_of_a_column(column):
    values = sorted(set(column))
    assert distinct(np.array(column, np.int64)) == values
    assert counted(np.array(column, np.int64)) == [(v, column.count(v)) for v in values]
