"""Load or recompute: how much of what the tiers hold is worth loading (law 4).

A prefix is loaded from its beginning up to a cut and computed from there. The cut with the least
predicted time wins; while it is loaded, `Patience` sees whether it goes as was predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from preread.store.rates import Pace, Prefill

LEAST_S = 0.05  # no load is given less: below that nothing can be learnt of a tier
TRIED = 0.1  # of the time that computing takes, before a load is judged by how it goes
SLOWER = 1.25  # than computing what is left: then it is not worth going on


class Piece(NamedTuple):
    """Tokens up to `end`, from the end of the piece before, are so many bytes in these tiers."""

    end: int
    parts: tuple[tuple[str, int], ...]  # (tier, bytes)


class Choice(NamedTuple):
    """Load up to token `upto`, which is predicted to take load_s; computing the same would take
    compute_s. tried: tiers that nothing is known of, taken to cost nothing."""

    upto: int
    load_s: float
    compute_s: float
    tried: frozenset[str] = frozenset()


def decide(
    start: int, pieces: Sequence[Piece], paces: Mapping[str, Pace], prefill: Prefill | None
) -> Choice:
    """The best cut for tokens [start, end of the last piece). A tier without a pace is tried, and
    all is loaded where nothing is known of computing. Of equal cuts the longest load."""
    end = pieces[-1].end if pieces else start
    least = prefill.seconds(start, end) if prefill else float("inf")
    upto, upto_s, load_s = start, 0.0, 0.0
    asked: set[str] = set()
    for piece in pieces:
        for tier, nbytes in piece.parts:
            if pace := paces.get(tier):
                load_s += nbytes * pace.byte_s + (0.0 if tier in asked else pace.fixed_s)
            asked.add(tier)
        total = load_s + (prefill.seconds(piece.end, end) if prefill else 0.0)
        if total <= least:
            least, upto, upto_s = total, piece.end, load_s
    compute_s = prefill.seconds(start, upto) if prefill else float("inf")
    return Choice(upto, upto_s, compute_s, frozenset(asked - paces.keys()))


class Patience:
    """Whether a load of tokens [start, upto) is still worth waiting for. Asked after every span,
    with the seconds since it began."""

    def __init__(self, start: int, upto: int, prefill: Prefill) -> None:
        self._start = start
        self._upto = upto
        self._prefill = prefill
        self._whole_s = prefill.seconds(start, upto)

    @property
    def deadline_s(self) -> float:
        """After so long nothing is waited for: by then all could have been computed."""
        return max(LEAST_S, self._whole_s)

    def ends(self, token: int, elapsed_s: float) -> bool:
        """Tokens up to `token` are there: rather compute the rest?"""
        if elapsed_s > self.deadline_s:
            return True
        if token <= self._start or elapsed_s < max(LEAST_S, TRIED * self._whole_s):
            return False
        left_s = elapsed_s * (self._upto - token) / (token - self._start)
        return left_s > SLOWER * self._prefill.seconds(token, self._upto)
