"""All answers of a call as columns, each a Completion when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, overload

from preread.backend import Ragged
from preread.contexts.columns import Columns
from preread.contexts.rows import as_rows
from preread.types import Completion, Finish

if TYPE_CHECKING:
    from preread.types import Float32Array


class Answers(Columns[Completion]):
    """A sequence of Completions in the order of the prompts, kept as columns: 170,000 answers are
    a few arrays until one of them is looked at."""

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
    def times(self) -> Float32Array:
        """[n, 3]: milliseconds until loaded, until the first token, in all."""
        return self._whole.times

    @overload
    def __getitem__(self, at: int) -> Completion: ...
    @overload
    def __getitem__(self, at: slice) -> Answers: ...
    def __getitem__(self, at: int | slice) -> Completion | Answers:
        if isinstance(at, slice):
            return Answers(self._only(range(len(self))[at]))
        place = range(len(self))[at]  # negative ones, and IndexError
        (row,) = as_rows(self._only(range(place, place + 1)))
        return row.completion()

    def __iter__(self) -> Iterator[Completion]:
        return (row.completion() for row in as_rows(self._whole))

    def __repr__(self) -> str:
        return f"Answers({len(self)} rows, {len(self.errors)} errors)"
