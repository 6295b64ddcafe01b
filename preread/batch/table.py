"""The contract of an input: blocks of requests as columns, and everything wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from preread.batch.order import Order
from preread.errors import RequestError
from preread.types import Prefix

BLOCK = 2048  # requests read at once
SHOWN = 20  # faults that are told; the rest is counted


@dataclass(slots=True)
class Rows:
    """Requests in the order of the input, one column per part. ids: custom_id, "" for none; files
    and lines: where each stands (lines from 1); carry: what the output repeats of it, as JSON.
    texts: the last user turn, or (order.raw) the whole prompt."""

    ids: list[str] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    prefixes: list[Prefix] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    carry: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def add(
        self, at: tuple[int, int], order: Order, prefix: Prefix, text: str, *, id: str = "",
        carry: str = "",
    ) -> None:  # fmt: skip
        self.ids.append(id)
        self.files.append(at[0])
        self.lines.append(at[1])
        self.orders.append(order)
        self.prefixes.append(prefix)
        self.texts.append(text)
        self.carry.append(carry)


class Faults:
    """What is wrong with an input. All of it is looked at before anything is refused."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.count = 0
        self.notes: dict[str, int] = {}  # what a reader left out that is no request, and how often

    def add(self, where: str, line: int, field: str, wrong: str) -> None:
        """wrong: what it is and what was expected."""
        self.count += 1
        if len(self.messages) < SHOWN:
            self.messages.append(f"{where}:{line}: {field}: {wrong}")

    def note(self, what: str) -> None:
        self.notes[what] = self.notes.get(what, 0) + 1

    def check(self) -> None:
        """Raises RequestError if there are any."""
        if not self.count:
            return
        noun, more = "fault" if self.count == 1 else "faults", self.count - len(self.messages)
        told = "\n  ".join([*self.messages, *([f"and {more:,} more"] if more else [])])
        raise RequestError(
            f"{self.count:,} {noun} in the input; nothing was run.\n  {told}\n",
            hint="Mend these lines and run it again.",
        )


class Table(Protocol):
    """An input that can be read from its beginning any number of times, except stdin, once."""

    @property
    def files(self) -> list[str]:
        """As they are numbered in Rows.files."""
        ...

    @property
    def fan(self) -> int:
        """Requests that each row of the input makes, side by side."""
        ...

    @property
    def fixed(self) -> int:
        """How many of the rows read last are not of the input."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """Of a table, known when it was read; none of a batch file."""
        ...

    def read(self, faults: Faults) -> Iterator[Rows]:
        """All requests, a block at a time; faults are added, their lines make no request. Raises
        SourceError for a file that cannot be read at all."""
        ...
