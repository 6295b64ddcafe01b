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
    work: Callable[[T], R],
    things: Sequence[T],
    window: int,
) -> Iterator[R]:
    """`map(work, things)`, at most `window` of them at work at once in threads of their own, so
    that what takes the results and what makes them overlap. What `work` raises comes in its place
    and ends the iterator. Closing it starts nothing new and does not wait for what has started; the
    end of the process does, as foreign code does not bear to be cut off."""
    if window < 2 or len(things) < 2:
        yield from map(work, things)
        return
    window = min(window, len(things))
    pool = ThreadPoolExecutor(window, "preread-read")
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
