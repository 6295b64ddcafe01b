"""Values on their way into the reader's memory: verified by the thread that reads them, and written
straight to where they belong where that can be done without harm.

Harm: whoever reads may be late. A load that is given up must not be written to any more, for its
places are computed into next. So places are written only inside a `Gate`, where nothing waits for
anything, and who gives up shuts it first. What may take however long goes to ordinary memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Protocol, TypeAlias

from preread.store.chunk import (
    CHECKSUM_BYTES,
    HEADER_BYTES,
    ChunkFault,
    ChunkHeader,
    Fault,
    Parts,
)
from preread.store.keys import Box
from preread.store.layout import Layout
from preread.store.tiers.base import ChunkKey, Landed, Room
from preread.store.tiers.landing import Fill, InRoom, Landing, Lands

AT_ONCE = 1 << 21  # bytes read before they are looked at: they are in the processor's cache still


class Slots(Protocol):
    """The memory of one box's KV, as bytes in the order of [layers, 2, heads, tokens, head_dim].
    Any thread."""

    @property
    def away(self) -> bool:
        """On a device: not to be read to; and what it is filled from is copied later, and must stay
        as it is for as long as anybody holds it."""
        ...

    def pieces(self) -> Sequence[memoryview]:
        """As many as it takes, in that order. Not of what is away."""
        ...

    def fill(self, payload: memoryview) -> None:
        """All of it, from memory that is flat."""
        ...

    def ease(self) -> None:
        """After `fill`: wait until no more memory is held than a few boxes take."""
        ...


# box -> where its KV belongs; None: it has no memory of its own now. Called from any thread.
Place: TypeAlias = Callable[[Box], Slots | None]


class Abandoned(Exception):
    """Nobody wants the value any more. Internal: ends the read that brings it."""


class Gate:
    """Open until it is shut; from then on nobody is inside. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._inside = 0
        self._shut = False

    def __enter__(self) -> None:
        with self._lock:
            if self._shut:
                raise Abandoned
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._shut and not self._inside:
                self._left.notify_all()

    def shut(self) -> None:
        """Waits for who is inside, who waits for nothing."""
        with self._lock:
            self._shut = True
            self._left.wait_for(lambda: not self._inside)


class HeldUp:
    """Entered by who reads when it is its receiver that takes time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._left = -inf  # of `time.monotonic`

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._inside -= 1
            self._left = time.monotonic()

    def since(self, began: float) -> float:
        """See landing.Lands."""
        with self._lock:
            return inf if self._inside else max(began, self._left)


class Arrived(Landed):
    """A chunk that was verified. payload: None where it lies in its place; fault: why it is not the
    chunk expected."""

    __slots__ = ("fault", "payload")

    def __init__(self, payload: memoryview | None = None, fault: Fault | None = None) -> None:
        self.payload = payload
        self.fault = fault

    @property
    def light(self) -> bool:
        return self.payload is None

    def verified(self) -> memoryview | None:
        """The payload. Raises ChunkFault."""
        if self.fault is not None:
            raise ChunkFault(self.fault)
        return self.payload


class Spot:
    """The place of one chunk, behind the gate."""

    __slots__ = ("_gate", "_held_up", "_nbytes", "_slots")

    def __init__(self, gate: Gate, held_up: HeldUp, slots: Slots, chunk: ChunkHeader) -> None:
        self._gate = gate
        self._held_up = held_up
        self._slots = slots
        self._nbytes = chunk.payload_nbytes

    @property
    def away(self) -> bool:
        return self._slots.away

    def copy(self, payload: memoryview) -> None:
        """From ordinary memory. Raises Abandoned."""
        assert len(payload) == self._nbytes, "a place of another size"
        with self._held_up:
            with self._gate:
                self._slots.fill(payload)
            self._slots.ease()  # outside the gate: it waits for a device

    def read(self, fill: Fill, parts: Parts) -> bool:
        """Head and tail of the value go to `parts`, which is told of everything else. Whether it
        was filled. Raises Abandoned."""
        views = [parts.head, *self._slots.pieces()]
        step = max(1, len(views) * AT_ONCE // self._nbytes)
        at = 0
        with self._gate:
            for first in range(0, len(views), step):
                some = views[first : first + step]
                nbytes = sum(map(len, some))
                last = first + step >= len(views)
                got = fill([*some, parts.tail] if last else some, at)
                if got < nbytes + last * len(parts.tail):
                    return False
                parts.add(some, nbytes)
                at += nbytes
        assert at == len(parts.head) + self._nbytes, "a place of another size"
        return True


class Arrivals(Lands):
    """Where the values of one stream go. chunks: what is expected; room: ordinary memory; place:
    where they belong. Thread-safe."""

    def __init__(
        self, layout: Layout, chunks: Mapping[ChunkKey, ChunkHeader], room: Room, place: Place
    ) -> None:
        self._layout = layout
        self._chunks = chunks
        self._room = room
        self._place = place
        self._gate = Gate()
        self._held_up = HeldUp()

    def __call__(self, nbytes: int) -> memoryview:
        return self._room(nbytes)

    def landing(self, key: ChunkKey, nbytes: int) -> Landing:
        """A value of another length than expected is no chunk, and goes nowhere."""
        chunk = self._chunks.get(key)
        if chunk is None or nbytes != HEADER_BYTES + chunk.payload_nbytes + CHECKSUM_BYTES:
            return InRoom(self._room, nbytes)
        slots = self._place(chunk.box) if self._layout.exact else None
        spot = None if slots is None else Spot(self._gate, self._held_up, slots, chunk)
        if spot is None or spot.away or self._layout.sealed:
            return Apart(self._layout, chunk, self._room, spot)
        return InPlace(self._layout, chunk, self._room, spot)

    def since(self, began: float) -> float:
        return self._held_up.since(began)

    def shut(self) -> None:
        """From now on nothing is written to any place."""
        self._gate.shut()


class Apart(InRoom):
    """A chunk that is verified, and opened where it is sealed, in ordinary memory; from there it
    goes to its place, if it has one."""

    __slots__ = ("_chunk", "_layout", "_spot")

    def __init__(
        self, layout: Layout, chunk: ChunkHeader, room: Room, spot: Spot | None = None
    ) -> None:
        super().__init__(room, HEADER_BYTES + chunk.payload_nbytes + CHECKSUM_BYTES)
        self._layout = layout
        self._chunk = chunk
        self._spot = spot

    def take(self, value: memoryview, *, lasts: bool = False) -> Landed:
        later = self._spot is None or self._spot.away
        if later and not self._layout.sealed and not lasts:
            value = self.kept(value)  # for the payload is a view of it
        try:
            payload = self._layout.unpack(value, self._chunk, self._room)
        except ChunkFault as exc:
            return Arrived(fault=exc.reason)
        if self._spot is None:
            return Arrived(payload)
        self._spot.copy(payload)
        return Arrived()


class InPlace(Apart):
    """A chunk that can be read to its place at once, and is verified there. What is bad there is
    nothing yet."""

    __slots__ = ()

    def scatter(self, fill: Fill) -> Landed | None:
        assert self._spot is not None
        parts = Parts(self._chunk)
        if not self._spot.read(fill, parts):
            return None
        try:
            parts.judge()
        except ChunkFault as exc:
            return Arrived(fault=exc.reason)
        return Arrived()
