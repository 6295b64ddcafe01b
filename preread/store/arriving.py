"""Values on their way into the reader's memory: verified by the thread that reads them, and written
straight to where they belong where that can be done without harm.

Harm: whoever reads may be late. A load that is given up must not be written to any more, for its
places are computed into next. So places are written only inside a `Gate`, where nothing waits for
anything, and who gives up shuts it first. What may take however long goes to ordinary memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
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

    def pieces(self) -> Sequence[memoryview]:
        """As many as it takes, in that order."""
        ...

    def fill(self, payload: memoryview) -> None:
        """All of it, from memory that is flat."""
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

    __slots__ = ("_gate", "_nbytes", "_slots")

    def __init__(self, gate: Gate, slots: Slots, chunk: ChunkHeader) -> None:
        self._gate = gate
        self._slots = slots
        self._nbytes = chunk.payload_nbytes

    def copy(self, payload: memoryview) -> None:
        """From ordinary memory. Raises Abandoned."""
        assert len(payload) == self._nbytes, "a place of another size"
        with self._gate:
            self._slots.fill(payload)

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

    def __call__(self, nbytes: int) -> memoryview:
        return self._room(nbytes)

    def landing(self, key: ChunkKey, nbytes: int) -> Landing:
        """A value of another length than expected is no chunk, and goes nowhere."""
        chunk = self._chunks.get(key)
        if chunk is None or nbytes != HEADER_BYTES + chunk.payload_nbytes + CHECKSUM_BYTES:
            return InRoom(self._room, nbytes)
        slots = self._place(chunk.box) if self._layout.exact else None
        spot = None if slots is None else Spot(self._gate, slots, chunk)
        if spot is None or self._layout.sealed:
            return Apart(self._layout, chunk, self._room, spot)
        return InPlace(self._layout, chunk, self._room, spot)

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
        if self._spot is None and not self._layout.sealed and not lasts:
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
