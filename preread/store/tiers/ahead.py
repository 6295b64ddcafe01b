"""Work on many things in order, some of them ahead of the one that is asked for."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    work: Callable[[T], R],
    things: Sequence[T],
    window: int,
    *,
    hangs: bool = False,
) -> Iterator[R]:
    """`map(work, things)`, at most `window` of them at work at once in threads of their own, so
    that what takes the results and what makes them overlap. What `work` raises comes in its place
    and ends the iterator. Closing it starts nothing new and does not wait for what has started.
    hangs: work may never end, and the process is not to wait for it when it ends; not for work in
    foreign code, which does not bear to be cut off."""
    if window < 2 or len(things) < 2:
        yield from map(work, things)
        return
    window = min(window, len(things))
    pool: ThreadPoolExecutor | _Crew[T, R] = (
        _Crew(window) if hangs else ThreadPoolExecutor(window, "preread-read")
    )
    rest = iter(things)
    flying: deque[Future[R]] = deque()
    try:
        flying.extend(pool.submit(work, thing) for thing in islice(rest, window))
        while flying:
            result = flying.popleft().result()
            flying.extend(pool.submit(work, thing) for thing in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Crew(Generic[T, R]):
    """A ThreadPoolExecutor whose threads nobody waits for, not even the end of the process."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._jobs: queue.SimpleQueue[tuple[Callable[[T], R], T, Future[R]] | None] = (
            queue.SimpleQueue()
        )
        for _ in range(count):
            threading.Thread(target=self._run, name="preread-read", daemon=True).start()

    def submit(self, work: Callable[[T], R], thing: T) -> Future[R]:
        future: Future[R] = Future()
        self._jobs.put((work, thing, future))
        return future

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        """As an executor does with (False, True)."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
        for _ in range(self._count):
            self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, thing, future = job
            try:
                future.set_result(work(thing))
            except BaseException as exc:
                future.set_exception(exc)
            del job, work, thing, future  # or its result would live as long as this waits
