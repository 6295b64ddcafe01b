"""How a value comes to who wants it: through ordinary memory, or straight to its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from preread.store.tiers.base import ChunkKey, Landed, Room

# Writes the value, from that byte on, to these views, one after the other, without waiting for
# anything: how many bytes.
Fill = Callable[[Sequence[memoryview], int], int]


class Landing(Protocol):
    """What receives one value, of a size known before. One thread at a time: the one that reads,
    which so does what the value costs its receiver, too."""

    def memory(self) -> memoryview:
        """Ordinary memory for all of the value. It may take however long to be filled."""
        ...

    def scatter(self, fill: Fill) -> Landed | None:
        """Have the value written to where it is wanted, in many places. None: there is no such
        place, or it was not written whole; then go by `memory` and `take`."""
        ...

    def take(self, value: memoryview, *, lasts: bool = False) -> memoryview | Landed:
        """The value, in `memory` (or less of it: it was shorter than it should be) or anywhere else
        where it stays as it is until this returns; lasts: for as long as anybody holds it."""
        ...


class Lands:
    """A Room that knows where each value is wanted. A class to inherit from: it is asked for at
    every value."""

    def __call__(self, nbytes: int) -> memoryview:
        raise NotImplementedError

    def landing(self, key: ChunkKey, nbytes: int) -> Landing:
        raise NotImplementedError


class InRoom:
    """A value that lies where the room says, in one piece."""

    __slots__ = ("_given", "_nbytes", "_room")

    def __init__(self, room: Room, nbytes: int) -> None:
        self._room = room
        self._nbytes = nbytes
        self._given = False

    def memory(self) -> memoryview:
        self._given = True
        return self._room(self._nbytes)

    def scatter(self, fill: Fill) -> Landed | None:
        return None

    def take(self, value: memoryview, *, lasts: bool = False) -> memoryview | Landed:
        return self.kept(value)  # also what lasts: it is the reader's own, who may write to it

    def kept(self, value: memoryview) -> memoryview:
        """The value in memory of the room, if it is not there yet."""
        if self._given:
            return value
        import numpy as np

        view = self.memory()  # filled without the interpreter's lock
        np.frombuffer(view, np.uint8)[:] = np.frombuffer(value, np.uint8)
        return view


def landing(room: Room, key: ChunkKey, nbytes: int) -> Landing:
    """For the value of this key, which has so many bytes."""
    return room.landing(key, nbytes) if isinstance(room, Lands) else InRoom(room, nbytes)
