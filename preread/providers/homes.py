"""Which organisation a group of requests goes to. A provider's cache is an organisation's own: what
one has read, another misses. So a group stays with one, its home, until that one's limits have held
it up for a while; then one request (two at DeepSeek) goes to another that has room, and when it is
answered, the group is at home there too.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from preread.providers.lanes import Cost, Lane

HELD_S = 1.0  # of waiting without a break: about what reading a beginning again takes
KNOWN = 16_384  # groups remembered


class Place(NamedTuple):
    """Where a request goes. new: its beginning has not been read there."""

    lane: Lane
    new: bool = False


@dataclass(slots=True)
class _Home:
    used: dict[int, float]  # by lane: when a request of the group was last answered or sent there
    held_since: float = -1.0
    next: int = -1  # the lane where the group is about to be at home
    asking: bool = False  # a request is under way there
    read: int = 0  # answers from there


@dataclass(slots=True)
class Homes:
    """firsts: answers after which a beginning is known; ttl_s: how long it is remembered after its
    last use, 0: for ever."""

    lanes: Sequence[Lane]
    firsts: int = 1
    ttl_s: float = 0.0
    _groups: OrderedDict[str, _Home] = field(default_factory=OrderedDict)

    def place(self, group: str, cost: Cost, now: float, inside: Lane | None = None) -> Place:
        """For a request that comes now, or one that is the first to wait inside a lane. group: ""
        where nothing is shared: the lane that is free first."""

        def wait(which: int) -> float:
            lane = self.lanes[which]
            return lane.wait_s(cost, now, behind=lane is not inside) if lane.fits(cost) else inf

        every = range(len(self.lanes))
        if len(every) == 1:
            return Place(self.lanes[0])
        if not group:
            return Place(self.lanes[min(every, key=wait)])
        home = self._of(group, now, wait)
        best = min(home.used, key=wait)
        if wait(best) == inf:  # none of its homes is ever large enough: another's first
            return self._first(home, min(every, key=wait))
        if wait(best) <= 0:
            home.held_since = -1.0
        elif home.held_since < 0:
            home.held_since = now
        elif now - home.held_since >= HELD_S and not home.asking:
            free = [i for i in every if i not in home.used and wait(i) <= 0]
            if free:
                return self._first(home, home.next if home.next in free else free[0])
        return Place(self.lanes[best])

    def _first(self, home: _Home, which: int) -> Place:
        """Where a group is about to be at home."""
        if home.next != which:
            home.next, home.read = which, 0
        home.asking = True
        return Place(self.lanes[which], new=True)

    def ended(self, group: str, place: Place, answered: bool, now: float) -> None:
        """A request of the group has come back from there, or nothing has."""
        home = self._groups.get(group)
        if home is None:
            return
        which = next(i for i, lane in enumerate(self.lanes) if lane is place.lane)
        if place.new:
            home.asking = False
            home.read += answered
            if answered and home.read >= self.firsts:
                home.used[which], home.next, home.held_since = now, -1, -1.0
        elif answered and which in home.used:
            home.used[which] = now

    def _of(self, group: str, now: float, wait: Callable[[int], float]) -> _Home:
        """Its home; a new group's is where fewest groups are at home of those that are free
        first."""
        if group not in self._groups:
            living = Counter(which for home in self._groups.values() for which in home.used)
            first = min(range(len(self.lanes)), key=lambda i: (wait(i), living[i]))
            self._groups[group] = _Home({first: now})
            while len(self._groups) > KNOWN:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        home = self._groups[group]
        if self.ttl_s and len(home.used) > 1:
            latest = max(home.used, key=lambda which: home.used[which])
            kept = {i: at for i, at in home.used.items() if i == latest or now - at < self.ttl_s}
            home.used = kept
        return home
