"""Load or recompute: how much of what the tiers hold is worth loading (law 4).

A prefix is loaded from its beginning up to a cut and computed from there; or, up to a cut, both at
once: computed from its front and loaded from its end, until they meet. The least predicted time
wins; while it is loaded alone, `Patience` sees whether it goes as was predicted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from preread.store.rates import Pace, Prefill, Slowed

LEAST_S = 0.05  # no load is given less: below that nothing can be learnt of a tier
TRIED = 0.1  # of the time that computing takes, before a load is judged by how it goes
SLOWER = 1.25  # than computing what is left: then it is not worth going on
GAIN = 1.03  # times the best of both at once that loading or computing alone must at least take

Besides = Callable[[frozenset[str]], Slowed]  # tiers that are loaded from -> what that costs


class Piece(NamedTuple):
    """Tokens up to `end`, from the end of the piece before, are so much in these tiers."""

    end: int
    parts: tuple[tuple[str, int, int], ...]  # (tier, bytes, chunks)


class Choice(NamedTuple):
    """Load up to token `upto`, which is predicted to take load_s; computing the same would take
    compute_s. tried: tiers that nothing is known of, taken to cost nothing. meets: where computing
    from the front and loading from the end are foreseen to meet, after load_s; None: it is loaded
    alone. tiers: what it is loaded from then.
    """

    upto: int
    load_s: float
    compute_s: float
    tried: frozenset[str] = frozenset()
    meets: int | None = None
    tiers: frozenset[str] = frozenset()


def decide(
    start: int,
    pieces: Sequence[Piece],
    paces: Mapping[str, Pace],
    prefill: Prefill | None,
    besides: Besides | None = None,
) -> Choice:
    """The best way for tokens [start, end of the last piece). besides: None where both at once
    cannot be had; it is chosen where it is better than the best cut by a margin."""
    alone = _alone(start, pieces, paces, prefill)
    names = frozenset(tier for piece in pieces for tier, _, _ in piece.parts)
    if besides is None or prefill is None or not pieces or not names <= paces.keys():
        return alone
    end = pieces[-1].end
    both = min(
        _together(start, pieces, paces, prefill, besides(names)),  # names: the same for every cut
        key=lambda c: c.load_s + prefill.seconds(c.upto, end),
        default=alone,
    )
    alone_s = alone.load_s + prefill.seconds(alone.upto, end)
    wins = (both.load_s + prefill.seconds(both.upto, end)) * GAIN <= alone_s
    return both if wins else alone


def _alone(
    start: int, pieces: Sequence[Piece], paces: Mapping[str, Pace], prefill: Prefill | None
) -> Choice:
    """The best cut. A tier without a pace is tried, and all is loaded where nothing is known of
    computing. Of equal cuts the longest load."""
    end = pieces[-1].end if pieces else start
    least = prefill.seconds(start, end) if prefill else float("inf")
    upto, upto_s, load_s = start, 0.0, 0.0
    asked: set[str] = set()
    for piece in pieces:
        for tier, nbytes, chunks in piece.parts:
            if pace := paces.get(tier):
                load_s += pace.more(nbytes, chunks) + (0.0 if tier in asked else pace.fixed_s)
            asked.add(tier)
        total = load_s + prefill.seconds(piece.end, end) if prefill else 0.0
        if total <= least:
            least, upto, upto_s = total, piece.end, load_s
    compute_s = prefill.seconds(start, upto) if prefill else float("inf")
    return Choice(upto, upto_s, compute_s, frozenset(asked - paces.keys()))


def loading(pieces: Sequence[Piece], paces: Mapping[str, Pace]) -> dict[int, float]:
    """End of a piece -> seconds until all up to there are loaded, from the first on."""
    took, asked, whole = {}, set[str](), 0.0
    for piece in pieces:
        for tier, nbytes, chunks in piece.parts:
            whole += paces[tier].more(nbytes, chunks)
            whole += 0.0 if tier in asked else paces[tier].fixed_s
            asked.add(tier)
        took[piece.end] = whole
    return took


def _together(
    start: int, pieces: Sequence[Piece], paces: Mapping[str, Pace], prefill: Prefill, slowed: Slowed
) -> Iterator[Choice]:
    """Both at once, up to the end of each piece but the first: the pieces before the place where
    they meet are computed, the others loaded."""
    own = [sum(paces[tier].more(n, chunks) for tier, n, chunks in piece.parts) for piece in pieces]
    upto_s = [0.0, *accumulate(own)]
    last: dict[str, int] = {}  # tier -> its last piece so far

    def load_s(first: int, cut: int) -> float:
        """Of the pieces [first, cut)."""
        fixed = sum(paces[tier].fixed_s for tier, n in last.items() if n >= first)
        return slowed.loading * (upto_s[cut] - upto_s[first] + fixed)

    def compute_s(first: int) -> float:
        """Of all pieces before that one."""
        return slowed.computing * prefill.seconds(start, pieces[first - 1].end)

    for cut in range(1, len(pieces) + 1):
        last |= {tier: cut - 1 for tier, _, _ in pieces[cut - 1].parts}
        firsts = range(1, cut)
        at = bisect_left(firsts, True, key=lambda n: compute_s(n) >= load_s(n, cut))
        near = [(max(compute_s(n), load_s(n, cut)), n) for n in firsts[max(0, at - 1) : at + 1]]
        for whole_s, first in near:
            upto = pieces[cut - 1].end
            meets = pieces[first - 1].end
            tiers = frozenset(last)
            yield Choice(upto, whole_s, prefill.seconds(start, upto), meets=meets, tiers=tiers)


def saved_by_layer(load_s: float, tail_s: float, groups: int, slowed: Slowed) -> float:
    """What is saved at most where the tokens behind a prefix are computed while its layers come, in
    so many groups: both then go on at once until the shorter of the two is over, but for the first
    group, which must be there, and slow each other."""
    both_s = min(load_s, tail_s) * (1 - 1 / groups)
    return both_s * max(0.0, 2 - max(slowed))


class Patience:
    """Whether a load of tokens [start, upto) is still worth waiting for. Asked after every span,
    with the seconds since it began. foreseen: token -> seconds until it should be there; None:
    nobody knows. What comes once, at the beginning, says nothing of the rest: so what is left is
    judged by how it went since the first span came, or, if that promises more, by how it goes
    against what was foreseen."""

    def __init__(
        self,
        start: int,
        upto: int,
        prefill: Prefill,
        foreseen: Callable[[int], float] | None = None,
    ) -> None:
        self._start = start
        self._upto = upto
        self._prefill = prefill
        self._foreseen = foreseen
        self._first: tuple[float, float] | None = None  # (share, seconds) when the first span came
        self._whole_s = prefill.seconds(start, upto)

    @property
    def deadline_s(self) -> float:
        """After so long nothing is waited for: by then all could have been computed."""
        return max(LEAST_S, self._whole_s)

    def ends(self, token: int, elapsed_s: float, share: float | None = None) -> bool:
        """Tokens up to `token` are there: rather compute the rest? share: how much of the load has
        come, where tokens do not say it."""
        if elapsed_s > self.deadline_s:
            return True
        left_s = self._left(token, elapsed_s, share)
        if left_s is None or elapsed_s < max(LEAST_S, TRIED * self._whole_s):
            return False
        return left_s > SLOWER * self._prefill.seconds(token, self._upto)

    def _left(self, token: int, elapsed_s: float, share: float | None) -> float | None:
        """Seconds that the rest should take; None: nothing is known yet."""
        left = []
        if share is None and self._foreseen is not None and (whole := self._foreseen(self._upto)):
            share = self._foreseen(token) / whole
            left += [elapsed_s * (1 - share) / share] if share else []
        elif share is None:
            share = (token - self._start) / (self._upto - self._start)
        if self._first is None:
            self._first = share, elapsed_s
        first, first_s = self._first
        if share > first:
            left.append((elapsed_s - first_s) * (1 - share) / (share - first))
        return min(left, default=None)
