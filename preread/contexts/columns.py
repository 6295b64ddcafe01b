"""Results of many rows as columns; a row is made an object when it is looked at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from preread.backend import ResultBatch

if TYPE_CHECKING:
    from preread.types import Int32Array

T = TypeVar("T")


class Columns(Sequence[T]):
    """A sequence over the rows of one ResultBatch; it equals a list of the same objects."""

    def __init__(self, whole: ResultBatch) -> None:
        """whole: an entry per row, in order."""
        self._whole = whole

    @abstractmethod
    def __iter__(self) -> Iterator[T]: ...

    @property
    def usage(self) -> Int32Array:
        """[n, 4]: context, cached, computed and output tokens."""
        return self._whole.usage

    @property
    def errors(self) -> dict[int, str]:
        """row -> message of those that failed."""
        return self._whole.errors

    def __len__(self) -> int:
        return len(self._whole.rows)

    def __eq__(self, other: object) -> bool:
        """Whether these are the same objects, in a list, too."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # like a list

    def _only(self, which: range) -> ResultBatch:
        """Some of the rows, numbered anew."""
        import numpy as np

        from preread.tokens.merged import only

        at = np.arange(which.start, which.stop, which.step)
        return only(self._whole, at, np.arange(len(at), dtype=np.int32))
