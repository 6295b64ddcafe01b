"""The tier: what the contract asks, in commands.

A chunk is one value, `SET name value PX residency`: there whole or not at all. Its time to live is
renewed by every hit, so that the time that is left also says when it was used last, and no index
beside the chunks is needed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from preread.store.tiers.base import (
    ChunkEntry,
    ChunkKey,
    ChunkUnreadable,
    Gone,
    Landed,
    Outcome,
    Room,
    TierUsage,
    fresh,
    owner_of,
)
from preread.store.tiers.book import PROMISE_S, Book, Note
from preread.store.tiers.eviction import Budget
from preread.store.tiers.landing import Landing, landing
from preread.store.tiers.redis import settings
from preread.store.tiers.redis.asking import Answer, ask, ask_about, followed, verdict
from preread.store.tiers.redis.holding import STEP_MS, Begun, Keyspace, look
from preread.store.tiers.redis.names import (
    NOBODY,
    aside_name,
    chunk_name,
    residency_ms,
    share_name,
)
from preread.store.tiers.redis.node import Node, NodeDown, at_once
from preread.store.tiers.redis.placement import Placement
from preread.store.tiers.redis.reading import WINDOW, Lane
from preread.store.tiers.redis.wire import Command, Reply

TTL_S = 7 * 86400.0  # a chunk stays this long after its last use
ASIDE_S = 3600.0  # and this long when it was set aside


class RedisTier:
    """Thread-safe. budget: bytes of chunks (every copy counted once) that this tier keeps to, least
    recently used first; 0: the servers' own maxmemory rules. Several processes may pass the budget
    by a sixteenth each for a moment. share: bytes of one owner that others' writes leave alone;
    without a budget, where the servers evict and know no owners, each is kept to it. cluster: only
    for advice on settings."""

    def __init__(
        self,
        placement: Placement,
        *,
        name: str = "redis",
        budget: int = 0,
        share: int = 0,
        ttl_s: float = TTL_S,
        window: int = WINDOW,
        cluster: bool = False,
        clock: Callable[[], float] = time.time,
        log: logging.Logger | None = None,
    ) -> None:
        self.name = name
        self._placement = placement
        self._ttl_s = ttl_s
        self._clock = clock
        self._look = partial(look, placement, ttl_s, clock)
        self._share = share
        self._book = Book(clock)
        self._begun = Begun(clock)
        self._budget = self._limited(budget, share)
        self._own: dict[bytes, Budget] = {}  # by owner, where each is kept to its share
        self._window = window
        self._cluster = cluster
        self._log = log or logging.getLogger("preread.store")

    @property
    def budget(self) -> int:
        """Without one of the tier's own, the servers' maxmemory."""
        told = [node for node in self._placement.known() if node.settings is not None]
        return self._budget.limit or settings.memory_limit(told)

    def find(self, keys: Sequence[ChunkKey], *, touch: bool = False) -> list[bool]:
        """One round trip per server that may hold one of the keys, all at the same time. Keys on
        servers that are down are misses as long as another server is up."""
        if not keys:
            return []
        self._inspect()
        # Each as if a little before the one ahead of it, see Begun.
        place = {key: n for n, key in enumerate(keys)} if touch else {}
        answers = ask(self._placement, keys, partial(self._find, place=place))
        asked = {node for key in keys for node in self._placement.homes(key)}
        verdict(self._placement, asked, (answer for some in answers for answer in some))
        found = [any(_first(answer) == 1 for answer in some) for some in answers]
        if touch:
            self._book.mark(key for key, held in zip(keys, found, strict=True) if held)
        return found

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        lanes: dict[Node, Lane] = {}
        plan = [(key, self._lane(key, lanes)) for key in keys]
        try:
            at_once([lane.start for lane in lanes.values()])
            for key, lane in plan:
                outcome = None if lane is None else self._landed(key, lane, room)
                if isinstance(outcome, memoryview | Landed):
                    self._book.mark([key])
                yield outcome
        finally:
            for lane in lanes.values():
                lane.close()

    def write(self, key: ChunkKey, value: Sequence[bytes | memoryview]) -> bool:
        """To every home of the key that is up. Raises TierError when none took it."""
        parts = tuple(memoryview(part).cast("B") for part in value)
        nbytes = sum(part.nbytes for part in parts)
        self._inspect()
        homes = self._placement.homes(key)
        if any(nbytes > node.max_value for node in homes):
            return False
        owner = owner_of(parts)
        self._promise()
        if not self._budget_of(owner).make_room(key, owner, nbytes):
            return False
        full_ms = residency_ms(key, self._ttl_s)
        # As if it had been used when that use began.
        late_ms = int((self._clock() - (self._begun.when(key) or self._clock())) * 1000)
        milliseconds = b"%d" % (full_ms - min(max(late_ms, 0), full_ms // 2))
        command: Command = (b"SET", chunk_name(key), parts, b"PX", milliseconds)
        (answers,) = ask(self._placement, [key], lambda key: [command])
        if any(_first(answer) == b"OK" for answer in answers):
            self._book.mark([key])
            return True
        down = [answer for answer in answers if isinstance(answer, NodeDown)]
        if down:
            raise down[0]
        raise NodeDown(
            f"{self.name}: no server of the cluster is responsible for chunk {key.hex()[:12]}….",
            hint="`redis-cli CLUSTER SHARDS` shows who is.",
        )

    def remove(self, keys: Sequence[ChunkKey], *, quarantine: bool = False) -> int:
        """Raises TierError when a server that may hold one of the keys cannot be asked, after the
        others have been."""
        answers = ask(self._placement, keys, self._set_aside if quarantine else self._unlink)
        for answer in (answer for some in answers for answer in some):
            if isinstance(answer, NodeDown):
                raise answer
        held = [any(_first(answer) in (1, b"OK") for answer in some) for some in answers]
        gone = (key for key, there in zip(keys, held, strict=True) if there)
        self._book.left(gone, Gone.SET_ASIDE if quarantine else Gone.REMOVED)
        return sum(held)

    def scan(self) -> Iterator[ChunkEntry]:
        """Every chunk once, as of the copy used last. Servers that are down are left out as long
        as another is up."""
        return iter(self._look().chunks)

    def usage(self) -> TierUsage:
        """Looks at every chunk."""
        self._inspect()
        held = self._look()
        return TierUsage(len(held.chunks), held.nbytes, self.budget)

    def used(self, saved: Mapping[ChunkKey, float]) -> None:
        """See base.Weighs. What that saves cannot be kept; that it has begun matters here, as what
        it writes must not take the place of what it touched."""
        self._begun.note(saved.keys())

    def left(
        self, keys: Sequence[ChunkKey], *, since: float = 0.0, look: bool = False
    ) -> dict[ChunkKey, Gone]:
        """See base.Recalls. The servers tell nobody what they drop: what went before its time was
        over went for want of room, or with its server."""
        notes, now, why = self._book.recall(keys), self._clock(), {}
        for key in keys:
            note = notes.get(key, Note())
            over = max(note.used, since) + residency_ms(key, self._ttl_s) / 1000
            if note.why:
                why[key] = note.why
            elif now >= over > residency_ms(key, self._ttl_s) / 1000:
                why[key] = Gone.EXPIRED
            elif note.used > 0:  # else it may never have been here
                why[key] = Gone.EVICTED
        return why

    def close(self) -> None:
        """Give the connections back; the next call makes new ones."""
        for node in self._placement.known():
            node.close()

    # -- reading --

    def _lane(self, key: ChunkKey, lanes: dict[Node, Lane]) -> Lane | None:
        """Reads from the first home that is up; None where nobody is responsible for the key."""
        homes = self._placement.homes(key)
        if not homes:
            return None
        node = next((node for node in homes if node.up()), homes[0])
        lane = lanes.setdefault(node, Lane(node, self._get, self._window))
        lane.want(key)
        return lane

    def _landed(self, key: ChunkKey, lane: Lane, room: Room) -> Outcome:
        berths: list[Landing] = []

        def memory(nbytes: int) -> memoryview:
            berths.append(landing(room, key, nbytes))
            return berths[-1].memory()

        outcome = self._outcome(key, lane, memory)
        # The last one is the value's: what came before it was cut off.
        return berths[-1].take(outcome) if isinstance(outcome, memoryview) else outcome

    def _outcome(self, key: ChunkKey, lane: Lane, room: Room) -> Outcome:
        """From its lane, else from the other homes, one after the other."""
        answers = [self._taken(key, lane, room)]
        for node in self._placement.homes(key):
            if isinstance(value := _first(answers[-1]), memoryview):
                return value
            if node is not lane.node:
                answers.append(ask_about(self._placement, node, key, self._get, room))
        verdict(self._placement, [lane.node, *self._placement.homes(key)], answers)
        firsts = [first for answer in answers if (first := _first(answer)) is not None]
        value = next((first for first in firsts if isinstance(first, memoryview)), None)
        if value is None and firsts:
            return ChunkUnreadable(f"{self.name}: {key.hex()}: {firsts[0]!r}.")
        return value

    def _taken(self, key: ChunkKey, lane: Lane, room: Room) -> Answer:
        try:
            reply = lane.take(room)
        except NodeDown as exc:
            self._placement.failed(lane.node)
            return exc.bare()
        return followed(self._placement, lane.node, [reply], key, self._get, room)

    # -- commands about a key --

    def _find(self, key: ChunkKey, *, place: Mapping[ChunkKey, int]) -> list[Command]:
        exists: Command = (b"EXISTS", chunk_name(key))
        return [exists, self._touch(key, STEP_MS * place[key])] if place else [exists]

    def _get(self, key: ChunkKey) -> list[Command]:
        """Not GETEX: who may only read is refused that, but gets a GET. The touch then fails alone:
        the order of use is lost."""
        return [(b"GET", chunk_name(key)), self._touch(key)]

    def _touch(self, key: ChunkKey, less_ms: int = 0) -> Command:
        full_ms = residency_ms(key, self._ttl_s)
        return (b"PEXPIRE", chunk_name(key), b"%d" % (full_ms - min(less_ms, full_ms // 2)))

    def _unlink(self, key: ChunkKey) -> list[Command]:
        return [(b"UNLINK", chunk_name(key))]

    def _set_aside(self, key: ChunkKey) -> list[Command]:
        aside = aside_name(key)
        milliseconds = b"%d" % int(ASIDE_S * 1000)
        return [(b"RENAME", chunk_name(key), aside), (b"PEXPIRE", aside, milliseconds)]

    # -- the servers --

    def _limited(self, limit: int, share: int, of: bytes | None = None) -> Budget:
        """By last use alone, which is all that the servers keep."""
        place = Keyspace(self._placement, self._look, self._book.heard, of)
        together = self._begun.together
        return Budget(
            limit, share, place, self._book, self._clock, together=together, place=self.name
        )

    def _promise(self) -> None:
        """What share is kept here, for who makes room elsewhere."""
        if self._budget.limit and self._share and self._book.promises():
            name, milliseconds = share_name(self._share), b"%d" % int(PROMISE_S * 1000)
            ask(self._placement, [NOBODY], lambda _: [(b"SET", name, b"1", b"PX", milliseconds)])

    def _budget_of(self, owner: bytes) -> Budget:
        if self._budget.limit or not self._share or not owner:
            return self._budget
        return self._own.setdefault(owner, self._limited(self._share, 0, owner))

    def _inspect(self) -> None:
        """Once per server: what it is set to."""
        new = [node for node in self._placement.nodes() if node.settings is None and node.up()]
        inspect = partial(
            settings.inspect, log=self._log, cluster=self._cluster, budget=self._budget.limit
        )
        at_once([partial(inspect, node) for node in new])


def _first(answer: Answer) -> Reply:
    return None if isinstance(answer, NodeDown) else answer[0]
