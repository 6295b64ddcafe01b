"""The line for prefix memory: who wants a place on the tree and has none yet, in order.

Whoever comes first gets memory first. While the head of the line finds none, others get a place
only where none need be made: on prefixes that are there. So that these do not keep the memory
occupied for ever, they too must wait once the head has waited long enough, unless there is room for
both.
"""

from __future__ import annotations

from preread.engine.prefix import PrefixTree
from preread.engine.reading import Reading, Readings
from preread.engine.segment import Segment

# Steps that the head of the line waits while others use the memory. A place changes hands at the
# cost of reading a prefix again, so the longer the prefix, the longer it waits: even where two
# contexts never fit side by side, most of the time goes into answers.
PATIENCE = 64
TOKENS_PER_STEP = 16


class Line:
    """Readings without a place, then `readings`. The engine thread alone calls these."""

    def __init__(self, tree: PrefixTree, readings: Readings) -> None:
        self._tree = tree
        self._readings = readings
        self._waiting: list[Reading] = []
        self._beside: dict[Segment, bool] = {}  # what may stay beside the head of the line
        self._judged: Reading | None = None  # the head for which that was found

    @property
    def head(self) -> Reading | None:
        """Who waits for memory."""
        return self._waiting[0] if self._waiting else None

    def join(self, reading: Reading, now: float) -> None:
        """It gets its place now or at the first `grant` that finds one."""
        if not self._may_pass(reading) or not self._readings.place(reading, now):
            self._waiting.append(reading)

    def grant(self, now: float) -> None:
        """Memory may have become free: give a place to all who can have one."""
        waiting, self._waiting = self._waiting, []
        for reading in waiting:
            self.join(reading, now)

    def age(self) -> None:
        """A step has passed."""
        if (head := self.head) is not None:
            head.waited += 1

    def leave(self, reading: Reading, now: float) -> None:
        """Nobody wants it any more: give up its place, or the wait for one."""
        if reading.placed:
            self._readings.release(reading, now)
        elif reading in self._waiting:
            self._waiting.remove(reading)

    def must_yield(self, reading: Reading) -> bool:
        """Whether a group that has its place must make way for the head of the line. Not before the
        place has been of use."""
        if self.head is None or reading.due or not self._readings.done(reading):
            return False
        return self._in_the_way(reading.leaf)

    def end(self, error: Exception) -> None:
        """Nobody gets a place any more."""
        for reading in self._waiting:
            reading.fail(error)
        self._readings.end(error)

    def _may_pass(self, reading: Reading) -> bool:
        """Whether it may have a place now, whoever is still waiting before it."""
        if self.head is None:
            return True
        leaf, found = self._tree.match(reading.tokens)
        there = found == reading.upto and (reading.linked or not found)
        return there and not self._in_the_way(leaf)

    def _in_the_way(self, leaf: Segment | None) -> bool:
        """Whether the head has waited long enough and cannot have its place while this, beside what
        was found to fit before, is held."""
        head = self.head
        if head is None or head.waited < PATIENCE + head.upto // TOKENS_PER_STEP:
            return False
        assert leaf is not None
        if self._judged is not head:
            self._judged, self._beside = head, {}
        if leaf not in self._beside:
            stay = [segment for segment, fits in self._beside.items() if fits]
            self._beside[leaf] = self._tree.fits_beside(
                head.tokens, [*stay, leaf], linked=head.linked
            )
        return not self._beside[leaf]
