"""Memory that values are read to, given again when nobody holds it any more."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from preread.store.tiers.base import Room, fresh

if TYPE_CHECKING:
    from typing_extensions import Buffer

KEPT = 16  # buffers: the windows of the tiers that one load reads from
_OURS = 3  # references to what only this file holds: the list's, a name's and a call's


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
        self._buffers: list[Buffer] = []  # what views are made of; the latest given last

    def __call__(self, nbytes: int) -> memoryview:
        with self._lock:
            for n in range(len(self._buffers)):
                buffer = self._buffers[n]
                size = memoryview(buffer).nbytes
                # Each view made here refers to the buffer, and its slices refer to the view.
                if sys.getrefcount(buffer) == _OURS and nbytes <= size <= 2 * nbytes:
                    self._buffers.append(self._buffers.pop(n))
                    return memoryview(buffer)[:nbytes]
            buffer = self._make(nbytes).obj
            self._buffers = [*self._buffers[max(0, len(self._buffers) - self._kept + 1) :], buffer]
            return memoryview(buffer)[:nbytes]
