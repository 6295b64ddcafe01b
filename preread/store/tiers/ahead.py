"""Work on many things in order, some of them ahead of the one that is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    work: Callable[[T], R], things: Sequence[T], window: int, deadline_s: float = 0.0
) -> Iterator[R]:
    """`map(work, things)`, at most `window` of them at work at once in threads of their own, so
    that what takes the results and what makes them overlap. What `work` raises comes in its place
    and ends the iterator. Closing it starts nothing new and does not wait for what has started.
    Raises TimeoutError when a result is not there deadline_s after it was asked for (0: never)."""
    if (window < 2 or len(things) < 2) and not deadline_s:
        yield from map(work, things)
        return
    window = max(1, min(window, len(things)))
    pool = ThreadPoolExecutor(window, "preread-read")
    rest = iter(things)
    flying: deque[Future[R]] = deque()
    try:
        flying.extend(pool.submit(work, thing) for thing in islice(rest, window))
        while flying:
            result = _within(deadline_s, flying.popleft())
            flying.extend(pool.submit(work, thing) for thing in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _within(deadline_s: float, future: Future[R]) -> R:
    try:
        return future.result(deadline_s or None)
    except TimeoutError as exc:
        if future.done():  # its own
            raise
        raise TimeoutError(f"no answer within {deadline_s:g} s") from exc
