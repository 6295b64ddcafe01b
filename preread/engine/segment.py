"""A node of the prefix tree: a run of tokens, where its KV lies, and how much of it is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from preread.engine.arena import Run

if TYPE_CHECKING:
    from preread.engine.meeting import Meeting
    from preread.types import Int32Array

Stretch = tuple[int, int]  # tokens [a, b) of a prefix


@dataclass(slots=True, eq=False)
class Segment:
    """Tokens [start, end) of a prefix. ready: how many of them have KV, from the first on.

    pins: holders that end here (building, loading, running). lease: resident until then where
    memory allows (monotonic seconds), `lease_s` after each use. loading: a tier is filling it, so
    it is not to be computed; or by turns, as the meeting says. ahead: tokens behind a gap whose KV
    is there, in order, counted from the first of the prefix: nobody sees them before the gap is
    filled. linked: others may find it.
    """

    tokens: Int32Array
    runs: list[Run]
    start: int
    parent: Segment | None
    ready: int = 0
    children: dict[int, Segment] = field(default_factory=dict)
    pins: int = 0
    lease: float = 0.0
    lease_s: float = 0.0
    used: float = 0.0
    loading: bool = False
    linked: bool = True
    meeting: Meeting | None = None
    ahead: list[Stretch] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def complete(self) -> bool:
        return self.ready == len(self.tokens)

    @property
    def stop(self) -> int:
        """Where the tokens end that are to be read next: what comes then is there."""
        return self.ahead[0][0] if self.ahead else self.end

    def deliver(self, lo: int, hi: int) -> None:
        """The KV of those of tokens [lo, hi) that lie here and are not ready is there."""
        lo, hi = max(lo, self.start + self.ready), min(hi, self.end)
        if lo < hi:
            self.ahead = _united([*self.ahead, (lo, hi)])

    def join(self) -> None:
        """What lies ahead is ready as far as there is no gap before it. All before this segment
        is."""
        while self.ahead and self.ahead[0][0] <= self.start + self.ready:
            self.ready = max(self.ready, self.ahead.pop(0)[1] - self.start)

    def check(self) -> None:
        """Verify what is known of its tokens. Raises AssertionError."""
        assert sum(n for _, n in self.runs) == len(self.tokens) > 0, "runs and tokens"
        assert 0 <= self.ready <= len(self.tokens) and self.pins >= 0
        assert self.loading or self.meeting is None, "a meeting without a load"
        before = self.start + self.ready - (self.ready == 0)  # a gap may lie before the segment
        for lo, hi in self.ahead:
            assert before < lo < hi <= self.end, "what lies ahead is out of order"
            before = hi


def _united(stretches: list[Stretch]) -> list[Stretch]:
    """In order, those that touch as one."""
    out: list[Stretch] = []
    for lo, hi in sorted(stretches):
        if out and lo <= out[-1][1]:
            out[-1] = (out[-1][0], max(hi, out[-1][1]))
        else:
            out.append((lo, hi))
    return out
