"""Which beginnings a server has read: the first request of a group goes alone (two at DeepSeek),
the others wait for its whole answer, because requests under way at once cannot hit what none of
them has written yet."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from preread.providers.limits import Clock

HOPELESS = 3  # failures in a row after which nobody waits any longer
FRESH = 0.9  # of the server's memory: what is older may be gone when the request arrives
KNOWN = 16_384  # groups remembered


@dataclass(slots=True)
class _Group:
    read: int = 0  # whole answers since it was last forgotten
    failed: int = 0  # in a row
    used: float = 0.0
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)


class Warmth:
    """Groups by the digest of what they begin with."""

    def __init__(self, firsts: int, ttl_s: float, clock: Clock) -> None:
        """firsts: answers that must have come before the rest may go; ttl_s: the server's memory
        after the last use, 0: for ever."""
        self._firsts = firsts
        self._ttl_s = ttl_s * FRESH
        self._clock = clock
        self._groups: OrderedDict[str, _Group] = OrderedDict()

    def warm(self, group: str, ahead_s: float = 0.0) -> bool:
        """Whether a request may hit now, or so many seconds from now."""
        known = self._groups.get(group)
        if known is None or known.read < self._firsts:
            return False
        return not self._ttl_s or self._clock.now() + ahead_s - known.used < self._ttl_s

    def used(self, group: str) -> None:
        """A request of the group was answered: the server remembers it from now on."""
        known = self._of(group)
        if not self.warm(group) and known.read >= self._firsts:
            known.read = 0  # it had been forgotten
        known.read += 1
        known.failed = 0
        known.used = self._clock.now()

    def forget(self, group: str) -> None:
        self._groups.pop(group, None)

    @asynccontextmanager
    async def turn(self, group: str) -> AsyncIterator[Callable[[bool], None] | None]:
        """To go alone: call what it gives with the outcome. None: go with the others."""
        known = self._of(group)
        async with known.alone:
            if self.warm(group) or known.failed >= HOPELESS:
                yield None
                return

            def done(answered: bool) -> None:
                if not answered:
                    known.failed += 1

            yield done

    def _of(self, group: str) -> _Group:
        if group not in self._groups:
            self._groups[group] = _Group()
            while len(self._groups) > KNOWN:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return self._groups[group]
