"""What is told of readings: when it is so, not when it is launched, though the tree counts it as
ready from then on. Else the time between two notices would not be what a step took."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from preread.engine.reading import Reading

# (tokens ready, tokens wanted, tokens computed on this reading's account so far)
Told = Callable[[int, int, int], None]


class Notice(NamedTuple):
    """How far a reading is, as the tree has it at a moment. See Told."""

    reading: Reading
    ready: int
    ours: int

    def give(self) -> None:
        reading = self.reading
        if reading.told is not None and reading.error is None:
            reading.told(self.ready, reading.upto, self.ours)


class Notices:
    """Of what is under way on the device. The engine thread alone calls these."""

    def __init__(self) -> None:
        self._later: list[Notice] | None = None  # with the step that was launched last

    def launched(self, notices: list[Notice]) -> list[Notice]:
        """These are to be given to `computed` when the step is that was just launched."""
        self._later = notices
        return notices

    def computed(self, notices: list[Notice]) -> None:
        if notices is self._later:
            self._later = None
        for notice in notices:
            notice.give()

    def tell(self, notices: list[Notice]) -> None:
        """What is so now; together with the step that is under way, if one is."""
        if self._later is None:
            self.computed(notices)
        else:
            self._later += notices
