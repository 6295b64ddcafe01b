"""Branches: where on the tree running rows stand, and what the rows of one step share.

Rows of one step are packed so that branches which share a beginning are neighbours; then every
stretch of the tree is seen by one range of rows, and one dense attention pass serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from preread.engine.arena import Run
from preread.engine.prefix import PrefixTree, fork
from preread.engine.segment import Segment
from preread.tokens.ragged import distinct

if TYPE_CHECKING:
    from preread.types import Int64Array


@dataclass(slots=True, eq=False)
class Branch:
    """A place on the tree: the first `base` tokens of the path to `leaf`, held for `users` rows."""

    leaf: Segment
    base: int
    users: int = 0


class Span(NamedTuple):
    """Branches [first, last) share the tokens that lie in `runs`."""

    first: int
    last: int
    runs: tuple[Run, ...]


class Branches:
    """The branches in use, numbered. One pin on the tree per branch, however many rows it has."""

    def __init__(self, tree: PrefixTree, clock: Callable[[], float]) -> None:
        self._tree = tree
        self._clock = clock
        self._items: dict[int, Branch] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._next = 0
        self._spans: tuple[tuple[int, ...], Int64Array, list[Span]] = (
            (), np.empty(0, np.int64), [],
        )  # fmt: skip

    def __getitem__(self, number: int) -> Branch:
        return self._items[number]

    def open(self, leaf: Segment, base: int, users: int = 1) -> int:
        """The number of a branch for `users` more rows."""
        key = (id(leaf), base)
        if key not in self._numbers:
            self._numbers[key] = self._next
            self._items[self._next] = Branch(leaf, base)
            self._tree.pin(leaf)
            self._next += 1
        number = self._numbers[key]
        self._items[number].users += users
        return number

    def close(self, number: int, users: int = 1) -> None:
        """So many rows less; the last one lets go of the tree."""
        branch = self._items[number]
        branch.users -= users
        if not branch.users:
            del self._items[number], self._numbers[id(branch.leaf), branch.base]
            self._tree.unpin(branch.leaf, self._clock())

    def layout(self, numbers: Int64Array) -> tuple[Int64Array, list[Span]]:
        """Where each of these branch numbers comes in packing order (its rank among the distinct
        ones), and what they share. Remembered while neither the set nor the tree changes, so a
        decode step costs little here."""
        unique = distinct(numbers)
        key = (self._tree.version, *unique)
        if self._spans[0] != key:
            paths = {n: self._path(self._items[n]) for n in unique}
            order = sorted(unique, key=lambda n: ([id(s) for s in paths[n]], self._items[n].base))
            spans = self._share([self._items[n] for n in order], [paths[n] for n in order])
            ranks = np.empty(len(order), np.int64)
            ranks[np.searchsorted(unique, order)] = np.arange(len(order))
            self._spans = (key, ranks, spans)
        _, ranks, spans = self._spans
        if len(unique) == 1:
            return np.zeros(len(numbers), np.int64), spans
        return ranks[np.searchsorted(unique, numbers)], spans

    def _path(self, branch: Branch) -> list[Segment]:
        return self._tree.path(branch.leaf, branch.base)

    def _share(self, branches: Sequence[Branch], paths: Sequence[Sequence[Segment]]) -> list[Span]:
        links = [
            min(branches[i].base, branches[i + 1].base, fork(paths[i], paths[i + 1]))
            for i in range(len(branches) - 1)
        ]
        spans: list[Span] = []
        todo = [(0, len(branches), 0)] if branches else []
        while todo:
            first, last, start = todo.pop()
            inner = links[first : last - 1]
            stop = min(inner) if inner else branches[first].base
            if stop > start:
                runs = self._tree.runs(branches[first].leaf, start, stop)
                spans.append(Span(first, last, tuple(runs)))
            cuts = [first + 1 + i for i, link in enumerate(inner) if link == stop]
            if inner:
                edges = [first, *cuts, last]
                todo.extend((a, b, stop) for a, b in pairwise(edges))
        return spans
