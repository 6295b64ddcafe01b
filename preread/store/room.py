"""Memory that values are read to, given again when nobody holds it any more."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from preread.store.tiers.base import Room, fresh

if TYPE_CHECKING:
    from typing_extensions import Buffer

KEPT = 40  # buffers: what one load reads ahead of what it delivers, and has under way to a device
KEPT_BYTES = 256 << 20  # of all of them: a value that is no chunk may say it has a gigabyte


class Recycled:
    """A Room whose memory is warm: new pages cost a load about as much as its bytes do, and what
    was just read to a buffer in use is still in the processor's cache when it is verified. A buffer
    is given again when no view of it is left, which CPython's reference counts say at once; one
    that is kept (by a tensor on it, by a read that was abandoned) is simply not given. make: new
    memory, such as pinned one; kept: buffers that are remembered at most. Thread-safe."""

    def __init__(self, make: Room = fresh, *, kept: int = KEPT) -> None:
        self._make = make
        self._kept = kept
        self._lock = threading.Lock()
        # What views are made of; the latest given last.
        self._buffers: list[Buffer] = [bytearray()]
        self._ours = self._holders(0)  # of what nobody else holds: Pythons count differently
        self._buffers.clear()
        # Without a lock around the interpreter, counts are not exact.
        self._counted = getattr(sys, "_is_gil_enabled", lambda: True)()

    def __call__(self, nbytes: int) -> memoryview:
        with self._lock:
            # The one given last first: of all that are free it is the likeliest to be in the cache.
            for n in reversed(range(len(self._buffers) if self._counted else 0)):
                size = memoryview(self._buffers[n]).nbytes
                # Each view made here refers to the buffer, and its slices refer to the view.
                if self._holders(n) == self._ours and nbytes <= size <= 2 * nbytes:
                    buffer = self._buffers.pop(n)
                    self._buffers.append(buffer)
                    return memoryview(buffer)[:nbytes]
            buffer = self._make(nbytes).obj
            self._buffers.append(buffer)
            while len(self._buffers) > self._kept or self._nbytes() > KEPT_BYTES:
                del self._buffers[0]
            return memoryview(buffer)[:nbytes]

    def _nbytes(self) -> int:
        return sum(memoryview(buffer).nbytes for buffer in self._buffers)

    def _holders(self, n: int) -> int:
        """How many references the nth buffer has, by this one way of asking."""
        buffer = self._buffers[n]
        return sys.getrefcount(buffer)
