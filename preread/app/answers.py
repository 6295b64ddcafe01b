"""All answers of a call as columns, each a Completion when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

from preread.backend import Ragged, ResultBatch
from preread.contexts.rows import as_rows
from preread.types import Completion, Finish

if TYPE_CHECKING:
    from preread.types import Float32Array, Int32Array


class Answers(Sequence[Completion]):
    """A sequence of Completions in the order of the prompts, kept as columns: 170,000 answers are
    a few arrays until one of them is looked at."""

    def __init__(self, whole: ResultBatch) -> None:
        """whole: an entry per row, in order."""
        self._whole = whole

    @property
    def texts(self) -> list[str]:
        return self._whole.texts

    @property
    def tokens(self) -> Ragged:
        """Output tokens; row i is tokens.row(i)."""
        return self._whole.tokens

    @property
    def logprobs(self) -> Float32Array | None:
        """Natural log-probability of each of tokens.values, if asked for."""
        return self._whole.logprobs

    @property
    def finish(self) -> list[Finish]:
        """Why each ended; ERROR: see errors."""
        return [code or Finish.ERROR for code in self._whole.finish]

    @property
    def usage(self) -> Int32Array:
        """[n, 4]: context, cached, computed and output tokens."""
        return self._whole.usage

    @property
    def times(self) -> Float32Array:
        """[n, 3]: milliseconds until loaded, until the first token, in all."""
        return self._whole.times

    @property
    def errors(self) -> dict[int, str]:
        """row -> message of those that failed."""
        return self._whole.errors

    def __len__(self) -> int:
        return len(self._whole.rows)

    @overload
    def __getitem__(self, at: int) -> Completion: ...
    @overload
    def __getitem__(self, at: slice) -> Answers: ...
    def __getitem__(self, at: int | slice) -> Completion | Answers:
        if isinstance(at, slice):
            return Answers(self._some(range(len(self))[at]))
        place = range(len(self))[at]  # negative ones, and IndexError
        (row,) = as_rows(self._some(range(place, place + 1)))
        return row.completion()

    def __iter__(self) -> Iterator[Completion]:
        return (row.completion() for row in as_rows(self._whole))

    def __eq__(self, other: object) -> bool:
        """Whether these are the same Completions, in a list, too."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __repr__(self) -> str:
        return f"Answers({len(self)} rows, {len(self.errors)} errors)"

    def _some(self, which: range) -> ResultBatch:
        import numpy as np

        from preread.tokens.merged import only

        at = np.arange(which.start, which.stop, which.step)
        return only(self._whole, at, np.arange(len(at), dtype=np.int32))
