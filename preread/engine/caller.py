"""Who wants a prefix, as its build sees it."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from typing import NamedTuple

from preread.engine.reading import Reading
from preread.errors import Cancelled


class Moved(NamedTuple):
    """Tokens ready of those wanted; ours: how many were computed on our account; at: when, of
    `time.perf_counter`."""

    ready: int
    upto: int
    ours: int
    at: float

    def computed(self, before: Moved) -> bool:
        """Whether all that has come since was computed, none of it loaded."""
        return self.ready - before.ready == self.ours - before.ours > 0


class Caller:
    """Woken by whatever moves its prefix on. left: it is not wanted any more."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Moved | None] = queue.SimpleQueue()
        self._others: list[Caller] = []
        self._stop: Callable[[], None] | None = None
        self._hurried = False
        self.left = False

    def leave(self) -> None:
        """It is not wanted any more; from any thread."""
        self.left = True
        for waiting in (self, *self._others):
            waiting.left = True  # before: who listens from now on stops by itself
            waiting._inbox.put(None)
            waiting._cease()

    def hurry(self) -> None:
        """What is loaded for it is waited for no longer; from any thread."""
        for waiting in (self, *self._others):
            waiting._hurried = True  # before, as above
            waiting._cease()

    def _cease(self) -> None:
        if (stop := self._stop) is not None:
            stop()

    def fresh(self) -> Caller:
        """The same caller as one that has heard nothing: for one prefix after the other."""
        other = Caller()
        self._others.append(other)
        if self.left:
            other.leave()
        if self._hurried:
            other.hurry()
        return other

    def listen(self, stop: Callable[[], None] | None) -> None:
        """Call it when it is not wanted or waited for any more, also when that is so already; from
        any thread, perhaps twice. None: what was to be stopped is over."""
        self._stop = stop
        if self.left or self._hurried:
            self._cease()

    def check(self, reading: Reading) -> None:
        """Raises as `wait` does, without waiting."""
        if self.left:
            raise Cancelled("The build was cancelled.")
        if reading.error is not None:
            raise reading.error

    def tell(self, ready: int, upto: int, ours: int) -> None:
        """See Reading.told; from the engine thread."""
        self._inbox.put(Moved(ready, upto, ours, time.perf_counter()))

    def wait(self, reading: Reading) -> Moved:
        """The next news of the reading. Raises its error, or Cancelled when nobody wants it."""
        if (moved := self._inbox.get()) is None:
            raise Cancelled("The build was cancelled.")
        if reading.error is not None:
            raise reading.error
        return moved

    def news(self, reading: Reading) -> list[Moved]:
        """All that was told and not waited for; raises as `wait` does."""
        told = []
        while not self._inbox.empty():
            told.append(self.wait(reading))
        return told

    def pause(self, seconds: float, reading: Reading) -> None:
        """Let so much time pass; raises as `wait` does."""
        until = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty):
            while (left := until - time.monotonic()) > 0:
                if self._inbox.get(timeout=left) is None:
                    raise Cancelled("The build was cancelled.")
                if reading.error is not None:
                    raise reading.error
