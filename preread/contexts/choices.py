"""The choices of a batch as columns, each a Choice when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, overload

from preread.backend import ResultBatch
from preread.contexts.columns import Columns
from preread.contexts.rows import Row, as_rows
from preread.types import Choice

if TYPE_CHECKING:
    from preread.types import Float32Array

BLOCK = 1024  # Choices made at once where all are wanted


class Choices(Columns[Choice]):
    """A sequence of Choices in the order of the questions, kept as columns."""

    def __init__(
        self, whole: ResultBatch, names: tuple[str, ...], make: Callable[[int, Row], Choice]
    ) -> None:
        """whole: an entry per question, in order; names: the labels; make: question number and row
        -> Choice."""
        super().__init__(whole)
        self._make = make
        self.names = names

    @property
    def labels(self) -> list[str]:
        """The most probable label of each question; "" where it failed."""
        if not len(self):
            return []
        probs = self.probabilities
        good, best = (probs.max(1) > 0).tolist(), probs.argmax(1).tolist()
        return [self.names[i] if ok else "" for i, ok in zip(best, good, strict=True)]

    @property
    def probabilities(self) -> Float32Array:
        """[n, labels]; zeros where a question failed."""
        import numpy as np

        probs = self._whole.label_probs
        return np.zeros((len(self), len(self.names)), np.float32) if probs is None else probs

    @property
    def mass(self) -> Float32Array:
        """[n]: what the labels hold together."""
        import numpy as np

        return np.zeros(len(self), np.float32) if self._whole.mass is None else self._whole.mass

    @overload
    def __getitem__(self, at: int) -> Choice: ...
    @overload
    def __getitem__(self, at: slice) -> list[Choice]: ...
    def __getitem__(self, at: int | slice) -> Choice | list[Choice]:
        if isinstance(at, slice):
            return self._some(range(len(self))[at])
        place = range(len(self))[at]  # negative ones, and IndexError
        return self._some(range(place, place + 1))[0]

    def __iter__(self) -> Iterator[Choice]:
        for lo in range(0, len(self), BLOCK):
            yield from self._some(range(lo, min(lo + BLOCK, len(self))))

    def __repr__(self) -> str:
        return f"Choices({len(self)} questions, {len(self.errors)} errors)"

    def _some(self, which: range) -> list[Choice]:
        rows = as_rows(self._only(which))
        return [self._make(i, row) for i, row in zip(which, rows, strict=True)]
