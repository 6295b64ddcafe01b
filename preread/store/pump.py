"""An iterator that is run ahead in a thread of its own, so that who takes from it can stop
waiting."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

from preread.errors import TierError

T = TypeVar("T")

FEWER = "Answers stay right. Let the process have more threads: `ulimit -u`, or a container's pids."
DEPTH = 8  # things that hold memory, ahead of the one taken
SOME = DEPTH // 2  # of them, for which the other thread is woken: as long as the work on five
TELL_S = 0.002  # between two times that who takes is woken all the same,
LOOK_S = 0.005  # and between two looks of its own

Light = Callable[[T], bool]


class Pump(Generic[T]):
    """Takes one thing after the other from an iterator. light: what holds no memory, so that any
    number may be ahead, and nobody is woken for each: a thread that is woken takes the
    interpreter's lock from those that read. The thread dies with the process, so an iterator that
    hangs for ever holds nobody up. Who drops it has closed it."""

    def __init__(self, things: Iterator[T], light: Light[T] = lambda thing: False) -> None:
        self._line = _Line(light)
        run = (things, self._line)
        thread = threading.Thread(target=_run, args=run, name="preread-pump", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:  # the process may have no more: nothing comes
            self._line.end(TierError(f"Cannot read: {exc}.", hint=FEWER))

    @property
    def closed(self) -> bool:
        return self._line.closed

    def take(self, until: float) -> T:
        """The next thing, waited for until that moment of `time.perf_counter` (inf: for ever), or
        until `close`; then TimeoutError. Raises what the iterator raised, and StopIteration at its
        end."""
        return self._line.take(until)

    def close(self) -> None:
        """Nothing more is wanted; from any thread. Who waits for the next thing is woken. Does not
        wait: the iterator is closed when it gives way."""
        self._line.close()

    def __del__(self) -> None:
        self.close()


class _Line(Generic[T]):
    """What lies between the two threads; apart from the pump, which would else never be dropped.
    heavy: of the things that are ready, those that hold memory."""

    def __init__(self, light: Light[T]) -> None:
        self.closed = False
        self._light = light
        self._ready: deque[tuple[T] | BaseException] = deque()
        self._heavy = 0
        self._full = False  # and the pump waits for room
        # Of the pump's thread, too, while it holds it: there the garbage collector may close.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # never do both wait
        self._told = 0.0  # of `time.perf_counter`

    def take(self, until: float) -> T:
        with self._lock:
            while not (self._ready or self.closed):
                if (left := until - time.perf_counter()) <= 0:
                    raise TimeoutError
                self._changed.wait(min(left, LOOK_S))
            if self.closed:
                raise TimeoutError
            got = self._ready.popleft()
            if isinstance(got, BaseException):
                raise got
            if not self._light(got[0]):
                self._heavy -= 1
                if self._full and self._heavy <= SOME:
                    self._full = False
                    self._changed.notify()
            return got[0]

    def put(self, thing: T) -> bool:
        """Whether more is wanted."""
        with self._lock:
            light = self._light(thing)
            self._full = not light and self._heavy == DEPTH
            while self._full and not self.closed:
                self._changed.wait()
            self._ready.append((thing,))
            self._heavy += not light
            now = time.perf_counter()
            if self._heavy == SOME or now - self._told > TELL_S:
                self._told = now
                self._changed.notify()
            return not self.closed

    def end(self, exc: BaseException) -> None:
        with self._lock:
            self._ready.append(exc)
            self._changed.notify()

    def close(self) -> None:
        with self._lock:
            self.closed = True
            self._changed.notify_all()


def _run(things: Iterator[T], line: _Line[T]) -> None:
    """In the thread."""
    try:
        for thing in things:
            if not line.put(thing):
                break
            del thing  # or it would live as long as this waits for the next one
        else:
            line.end(StopIteration())
    except BaseException as exc:  # it goes to who takes
        line.end(exc)
    finally:
        if isinstance(things, Generator):
            things.close()
