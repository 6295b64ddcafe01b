"""A tier that misbehaves on purpose, the same way every time."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum

from preread.errors import TierError
from preread.store.tiers.base import (
    ChunkEntry,
    ChunkKey,
    Drops,
    Gone,
    Outcome,
    Recalls,
    Room,
    Tier,
    TierUsage,
    Weighs,
    fresh,
)
from preread.store.tiers.landing import landing


class Trouble(StrEnum):
    """What happens to one call; of `read`, to one value. Where a kind means nothing to a method,
    the call goes well."""

    DROP = "drop"  # find: none held; read: not held; write: says done, keeps nothing; remove: 0
    FLIP = "flip"  # find: the opposite; read, write: one bit changed
    TRUNCATE = "truncate"  # read, write: the end is missing
    SWAP = "swap"  # read: another chunk's value
    DELAY = "delay"  # any: late, but right
    RAISE = "raise"  # any: TierError
    FULL = "full"  # write: TierError, no space left


_WRONG = (Trouble.FLIP, Trouble.TRUNCATE, Trouble.SWAP)  # other bytes come

Plan = Callable[
    [str, int], Trouble | None
]  # (method, how many calls, of `read` values, it had before) -> trouble


def at(troubles: Mapping[tuple[str, int], Trouble]) -> Plan:
    """Exactly these: {("read", 3): Trouble.FLIP} damages the fourth value read."""
    return lambda method, n: troubles.get((method, n))


def often(seed: int, share: float, kinds: Sequence[Trouble] = tuple(Trouble)) -> Plan:
    """That share of all calls, drawn from the seed: equal seeds make equal trouble."""

    def plan(method: str, n: int) -> Trouble | None:
        draw = random.Random(f"{seed}/{method}/{n}")
        return draw.choice(kinds) if draw.random() < share else None

    return plan


class FaultyTier:
    """Wraps a tier, whose values it reads one by one. happened: what went wrong, in order, as
    (method, call number, trouble)."""

    def __init__(
        self,
        inner: Tier,
        plan: Plan,
        *,
        delay_s: float = 0.01,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = inner.name
        self.happened: list[tuple[str, int, Trouble]] = []
        self._inner = inner
        self._plan = plan
        self._delay_s = delay_s
        self._sleep = sleep
        self._calls: Counter[str] = Counter()

    @property
    def budget(self) -> int:
        return self._inner.budget

    def find(self, keys: Sequence[ChunkKey], *, touch: bool = False) -> list[bool]:
        trouble, _ = self._next("find")
        if trouble is Trouble.DROP:
            return [False] * len(keys)
        found = self._inner.find(keys, touch=touch)
        return [held ^ (trouble is Trouble.FLIP) for held in found]

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        for key in keys:
            trouble, draw = self._next("read")
            if trouble is Trouble.DROP:
                yield None
                continue
            if trouble not in _WRONG:
                yield from self._inner.read([key], room)
                continue
            others = sorted(e.key for e in self._inner.scan() if e.key != key)
            swap = trouble is Trouble.SWAP and others
            for value in self._inner.read([draw.choice(others) if swap else key]):
                if isinstance(value, memoryview):
                    value = _damaged(value, trouble, draw)
                    value = landing(room, key, len(value)).take(value)
                yield value

    def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
        trouble, draw = self._next("write")
        if trouble is Trouble.DROP:
            return True
        if trouble is Trouble.FULL:
            raise TierError(f"{self.name}: no space left.", hint="Free some space.")
        if trouble in (Trouble.FLIP, Trouble.TRUNCATE):
            whole = memoryview(bytearray(b"".join(value)))
            value = [_damaged(whole, trouble, draw)]
        return self._inner.write(key, value)

    def remove(self, keys: Sequence[ChunkKey], *, quarantine: bool = False) -> int:
        trouble, _ = self._next("remove")
        return 0 if trouble is Trouble.DROP else self._inner.remove(keys, quarantine=quarantine)

    def scan(self) -> Iterator[ChunkEntry]:
        self._next("scan")
        return self._inner.scan()

    def usage(self) -> TierUsage:
        self._next("usage")
        return self._inner.usage()

    def used(self, saved: Mapping[ChunkKey, float]) -> None:
        self._next("used")
        if isinstance(self._inner, Weighs):
            self._inner.used(saved)

    def left(
        self, keys: Sequence[ChunkKey], *, since: float = 0.0, look: bool = False
    ) -> dict[ChunkKey, Gone]:
        self._next("left")
        if not isinstance(self._inner, Recalls):
            return {}
        return self._inner.left(keys, since=since, look=look)

    def fallen(self) -> list[tuple[ChunkKey, memoryview]]:
        return self._inner.fallen() if isinstance(self._inner, Drops) else []

    def _next(self, method: str) -> tuple[Trouble | None, random.Random]:
        n = self._calls[method]
        self._calls[method] += 1
        trouble = self._plan(method, n)
        if trouble is not None:
            self.happened.append((method, n, trouble))
        if trouble is Trouble.DELAY:
            self._sleep(self._delay_s)
        if trouble is Trouble.RAISE:
            raise TierError(f"{self.name}: made to fail.", hint="Nothing to do.")
        return trouble, random.Random(f"{method}/{n}")


def _damaged(value: memoryview, trouble: Trouble | None, draw: random.Random) -> memoryview:
    if trouble is Trouble.FLIP and value:
        value[draw.randrange(len(value))] ^= 1 << draw.randrange(8)
    if trouble is Trouble.TRUNCATE and value:
        value = value[: draw.randrange(len(value))]
    return value
