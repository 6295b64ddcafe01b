"""An iterator that is run ahead in a thread of its own, so that who takes from it can stop
waiting."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterator
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")

DEPTH = 2  # things ahead of the one taken
LOOK_S = 0.05  # between two looks at whether anybody still wants something


class Pump(Generic[T]):
    """Takes one thing after the other from an iterator. The thread dies with the process, so an
    iterator that hangs for ever holds nobody up. Who drops it has closed it."""

    def __init__(self, things: Iterator[T]) -> None:
        self._ready: queue.Queue[tuple[T] | BaseException] = queue.Queue(DEPTH)
        self._closed = threading.Event()
        run = (things, self._ready, self._closed)
        threading.Thread(target=_run, args=run, name="preread-pump", daemon=True).start()

    @property
    def closed(self) -> bool:
        """Stopped as well."""
        return self._closed.is_set()

    def take(self, until: float) -> T:
        """The next thing, waited for until that moment of `time.perf_counter` (inf: for ever), or
        until `stop`; then TimeoutError. Raises what the iterator raised, and StopIteration at its
        end."""
        left = until - time.perf_counter()
        try:
            got = self._ready.get(timeout=None if left == inf else max(0.0, left))
        except queue.Empty:
            raise TimeoutError from None
        if self.closed:
            raise TimeoutError
        if isinstance(got, BaseException):
            raise got
        return got[0]

    def stop(self) -> None:
        """Close it, and wake who waits for the next thing; from any thread."""
        self._closed.set()
        with contextlib.suppress(queue.Full):  # then nobody waits
            self._ready.put_nowait(TimeoutError())

    def close(self) -> None:
        """Nothing more is wanted. Does not wait: the iterator is closed when it gives way."""
        self._closed.set()

    def __del__(self) -> None:
        self.close()


def _run(
    things: Iterator[T], ready: queue.Queue[tuple[T] | BaseException], closed: threading.Event
) -> None:
    """In the thread; does not hold the pump, which else would never be dropped."""

    def put(thing: tuple[T] | BaseException) -> bool:
        while not closed.is_set():
            try:
                ready.put(thing, timeout=LOOK_S)
                return True
            except queue.Full:
                continue
        return False

    try:
        for thing in things:
            if not put((thing,)):
                break
            del thing  # or it would live as long as this waits for the next one
        else:
            put(StopIteration())
    except BaseException as exc:  # it goes to who takes
        put(exc)
    finally:
        if isinstance(things, Generator):
            things.close()
