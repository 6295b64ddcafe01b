"""Values on their way into the reader's memory: verified by the thread that reads them, and written
straight to where they belong where that can be done without harm.

Harm: whoever reads may be late. A load that is given up must not be written to any more, for its
places are computed into next. So places are written only inside a `Gate`, where nothing waits for
anything, and who gives up shuts it first. What may take however long goes to ordinary memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

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

AT_ONCE = 1 << 18  # bytes written before they are looked at: they are in a second-level cache still

# box -> the memory of its KV [layers, 2, heads, tokens, head_dim] in that order, as bytes in as
# many pieces as it takes; None: it has none of its own now. Called from any thread.
Place: TypeAlias = Callable[[Box], "Sequence[memoryview] | None"]


class Abandoned(Exception):
    """Nobody wants the value any more. Internal: ends the read that brings it."""


class Gate:
    """Open until it is shut; from then on nobody is inside. Thread-safe."""

    def __init__(self) -> None:
        self._turn = threading.Condition(threading.Lock())
        self._inside = 0
        self._shut = False

    def __enter__(self) -> None:
        with self._turn:
            if self._shut:
                raise Abandoned
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._turn:
            self._inside -= 1
            if self._shut and not self._inside:
                self._turn.notify_all()

    def shut(self) -> None:
        """Waits for who is inside, who waits for nothing."""
        with self._turn:
            self._shut = True
            self._turn.wait_for(lambda: not self._inside)


class Arrived(Landed):
    """A chunk that was verified. payload: None where it lies in its place; fault: why it is not the
    chunk expected."""

    __slots__ = ("fault", "payload")

    def __init__(self, payload: memoryview | None = None, fault: Fault | None = None) -> None:
        self.payload = payload
        self.fault = fault

    def verified(self) -> memoryview | None:
        """The payload. Raises ChunkFault."""
        if self.fault is not None:
            raise ChunkFault(self.fault)
        return self.payload


class Spot:
    """The place of one chunk. pieces: views of it, in the order of the payload's bytes."""

    def __init__(self, gate: Gate, pieces: Sequence[memoryview], chunk: ChunkHeader) -> None:
        assert sum(map(len, pieces)) == chunk.payload_nbytes, "a place of another size"
        self.pieces = pieces
        self._gate = gate

    def copy(self, payload: memoryview) -> None:
        """From ordinary memory. Raises Abandoned."""
        with self._gate:
            copied(payload, self.pieces, 0)

    def read(self, fill: Fill, parts: Parts) -> bool:
        """Head and tail of the value go to `parts`, which is told of everything else. Whether it
        was filled. Raises Abandoned."""
        tail, at = memoryview(parts.tail), 0
        with self._gate:
            for views in self._groups(memoryview(parts.head)):
                nbytes = sum(map(len, views))
                if fill(views, at) < nbytes:
                    return False
                for view in views:
                    parts.add(view)
                at += nbytes
            return fill([tail], at) == len(tail)

    def _groups(self, head: memoryview) -> Iterator[list[memoryview]]:
        """The head and all pieces, as many at once as the processor's cache holds."""
        group, nbytes = [head], 0
        for piece in self.pieces:
            group.append(piece)
            nbytes += len(piece)
            if nbytes >= AT_ONCE:
                yield group
                group, nbytes = [], 0
        if group:
            yield group


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
        pieces = self._place(chunk.box) if self._layout.exact else None
        spot = None if pieces is None else Spot(self._gate, pieces, chunk)
        if spot is None or self._layout.sealed:
            return Apart(self._layout, chunk, self._room, spot)
        return InPlace(self._layout, chunk, self._room, spot)

    def shut(self) -> None:
        """From now on nothing is written to any place."""
        self._gate.shut()


class Apart:
    """A chunk that is verified, and opened where it is sealed, in ordinary memory; from there it
    goes to its place, if it has one."""

    def __init__(
        self, layout: Layout, chunk: ChunkHeader, room: Room, spot: Spot | None = None
    ) -> None:
        self._layout = layout
        self._chunk = chunk
        self._room = room
        self._spot = spot
        self._inner = InRoom(room, HEADER_BYTES + chunk.payload_nbytes + CHECKSUM_BYTES)

    def memory(self) -> memoryview:
        return self._inner.memory()

    def scatter(self, fill: Fill) -> Landed | None:
        return None

    def take(self, value: memoryview) -> Landed:
        whole = value if self._layout.sealed else self._inner.take(value)  # else it is a view of it
        try:
            payload = self._layout.unpack(whole, self._chunk, self._room)
        except ChunkFault as exc:
            return Arrived(fault=exc.reason)
        if self._spot is None:
            return Arrived(payload)
        self._spot.copy(payload)
        return Arrived()


class InPlace:
    """A chunk that is read to its place, piece by piece, and verified there. What is bad there is
    nothing yet."""

    def __init__(self, layout: Layout, chunk: ChunkHeader, room: Room, spot: Spot) -> None:
        self._chunk = chunk
        self._spot = spot
        self._apart = Apart(layout, chunk, room)

    def memory(self) -> memoryview:
        return self._apart.memory()

    def scatter(self, fill: Fill) -> Landed | None:
        parts = Parts(self._chunk)
        if not self._spot.read(fill, parts):
            return None
        try:
            parts.judge()
        except ChunkFault as exc:
            return Arrived(fault=exc.reason)
        return Arrived()

    def take(self, value: memoryview) -> Landed:
        # Not written whole: shorter than it was when its place was asked for.
        return self.scatter(partial(copied, value)) or self._apart.take(value)


def copied(value: memoryview, views: Sequence[memoryview], offset: int) -> int:
    """A Fill, from ordinary memory."""
    at = offset
    for view in views:
        part = value[at : at + len(view)]
        if len(part) < len(view):
            break
        view[:] = part
        at += len(view)
    return at - offset
