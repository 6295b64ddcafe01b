"""The chunks of a prefix, one after the other, each verified, from the nearest tier that has it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from math import inf
from typing import NamedTuple

from preread.errors import TierError
from preread.store.arriving import Arrivals, Arrived
from preread.store.asking import Asker
from preread.store.chunk import ChunkFault, ChunkHeader, Fault
from preread.store.pump import Pump
from preread.store.reports import Miss
from preread.store.tiers.base import ChunkKey, ChunkUnreadable, Outcome, Room, Tier, light

Stream = Iterator[Outcome] | Pump[Outcome]
Unpack = Callable[[memoryview, ChunkHeader], memoryview]  # raises ChunkFault


class Taken(NamedTuple):
    """A verified payload (None: it lies in its place), and the tier it came from."""

    payload: memoryview | None
    tier: Tier


class Reading:
    """One pass over some keys in order. Every tier streams what it is to serve, so that it reads
    ahead while the chunks before are verified and delivered. A chunk that proves missing or bad is
    asked of the tiers behind; a tier that fails is left for the rest of the pass."""

    def __init__(
        self,
        asker: Asker,
        keys: Sequence[ChunkKey],
        places: Mapping[ChunkKey, Tier],
        unpack: Unpack,
        room: Room,
        dead: Sequence[Tier] = (),
        until: float | None = None,
        arrivals: Callable[[], Arrivals] | None = None,
    ) -> None:
        """until: the moment of `time.perf_counter` after which nothing is waited for. arrivals:
        where the values of each stream go, in place of `room`, which verifies them."""
        self.faults: list[tuple[str, str]] = []  # (reason, hex key)
        self.late: Tier | None = None  # what was not waited for
        self._asker = asker
        self._keys = keys
        self._unpack = unpack
        self._room = room
        self._alive = [tier for tier in asker.tiers if tier not in dead]
        self._failed = bool(dead)
        self._until = until
        self._places = places
        self._arrivals = arrivals
        self._opened: list[Arrivals] = []
        self._running: list[Stream] = []  # all that were opened, to be stopped and closed
        self.stopped = False  # by somebody: what was not waited for was not late
        self._streams = self._open(keys)

    def take(self, n: int, expected: ChunkHeader) -> Taken | Miss:
        """The nth key's chunk, or why there is none; asked in order, each once. Too slow: it is
        not waited for any longer, and nothing more is to be asked."""
        key = self._keys[n]
        while (tier := self._places.get(key)) is not None:
            try:
                outcome = self._next(tier, self._streams[tier])
            except TimeoutError:
                self.late = tier
                return Miss.TOO_SLOW
            except TierError as exc:
                self._leave(tier, exc)
                self.close()
                self._places, dead = self._asker.places(self._keys[n:], self._alive)
                self._alive = [tier for tier in self._alive if tier not in dead]
                self._streams = self._open(self._keys[n:])
                continue
            judged = self._judge(tier, outcome, expected)
            return self._behind(tier, expected, judged) if isinstance(judged, Miss) else judged
        return self._absent(key)

    def stop(self) -> None:
        """From any thread, where nothing is waited for for ever: what is waited for, or will be, is
        too slow."""
        self.stopped = True  # first: a stream that is opened now is not waited for
        for stream in tuple(self._running):
            if isinstance(stream, Pump):
                stream.close()

    def close(self) -> None:
        """Abandon what is still in flight. Nothing is written to any place from now on."""
        while self._running:
            if isinstance(stream := self._running.pop(), Generator | Pump):
                stream.close()
        while self._opened:
            self._opened.pop().shut()

    def _open(self, keys: Sequence[ChunkKey]) -> dict[Tier, Stream]:
        share: dict[Tier, list[ChunkKey]] = {}
        for key in keys:
            if key in self._places:
                share.setdefault(self._places[key], []).append(key)
        return {tier: self._stream(tier, keys) for tier, keys in share.items()}

    def _stream(self, tier: Tier, keys: Sequence[ChunkKey]) -> Stream:
        room = self._room
        if self._arrivals is not None:
            self._opened.append(room := self._arrivals())
        outcomes = tier.read(keys, room)
        waits = self._until is None or isinstance(outcomes, Pump)
        stream = outcomes if waits else Pump(outcomes, light)
        self._running.append(stream)
        return stream

    def _next(self, tier: Tier, stream: Stream) -> Outcome:
        """Raises TierError, and TimeoutError when the time is over."""
        if self.stopped:
            raise TimeoutError
        try:
            if isinstance(stream, Pump):
                return stream.take(inf if self._until is None else self._until)
            return next(stream)
        except StopIteration:
            raise TierError(
                f"{tier.name}: fewer values than were asked for.", hint="It is a bug of that tier."
            ) from None

    def _leave(self, tier: Tier, exc: TierError) -> None:
        self._asker.failed(tier, exc)
        if tier in self._alive:  # else it has failed before, when another's chunk was asked of it
            self._alive.remove(tier)
        self._failed = True

    def _judge(self, tier: Tier, outcome: Outcome, expected: ChunkHeader) -> Taken | Miss:
        """Verify; a bad chunk is set aside."""
        if outcome is None:
            return self._absent(expected.key)
        try:
            if isinstance(outcome, memoryview):
                return Taken(self._unpack(outcome, expected), tier)
            if isinstance(outcome, Arrived):
                return Taken(outcome.verified(), tier)
            assert isinstance(outcome, ChunkUnreadable), outcome
            fault, detail = Fault.UNREADABLE, f" ({outcome})"
        except ChunkFault as exc:
            fault, detail = exc.reason, ""
        self.faults.append((fault.value, expected.key.hex()))
        self._asker.reject(tier, expected.key, fault, detail)
        return Miss.of(fault)

    def _behind(self, tier: Tier, expected: ChunkHeader, why: Miss) -> Taken | Miss:
        """The chunk from a tier behind this one, which did not have it as it must be."""
        tiers = self._asker.tiers
        for other in tiers[tiers.index(tier) + 1 :]:
            if other not in self._alive or self._asker.suspects(other, expected.key):
                continue
            try:
                stream = self._stream(other, [expected.key])
                outcome = self._next(other, stream)
            except TimeoutError:
                self.late = other
                return Miss.TOO_SLOW
            except TierError as exc:
                self._leave(other, exc)
                return self._behind(tier, expected, why)
            judged = self._judge(other, outcome, expected)
            if isinstance(judged, Taken):
                return judged
            why = judged if outcome is not None else why
        return why

    def _absent(self, key: ChunkKey) -> Miss:
        if self._failed:
            return Miss.TIER_FAILED
        return self._asker.lost([key]) or Miss.TOO_SHORT
