"""Work on many things in order, done by who takes the results and by helpers beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

FEWEST = 4  # things that a helper is started for: starting one costs as much as reading a chunk
AHEAD = 3  # results not taken yet, for each hand: the one waited for may be the last to come; not
# more, as all of them may hold memory (room.KEPT)


def together(work: Callable[[T], R], things: Sequence[T], hands: int) -> Iterator[R]:
    """`map(work, things)` by `hands` threads, the one that asks among them. Nobody is woken for a
    result: who asks works until the next one is there, as on few cores waking a thread takes as
    long as reading a chunk. So this is for work that takes next to no time, or waits for the same
    as the others. What `work` raises comes in its place and ends the iterator. Closing it starts
    nothing new and does not wait for what has started; nor does the end of the process."""
    if hands < 2 or len(things) < FEWEST:
        yield from map(work, things)
        return
    crew = _Crew(work, things, hands * AHEAD)
    for _ in range(hands - 1):
        helper = threading.Thread(target=crew.help, name="preread-read", daemon=True)
        try:
            helper.start()
        except RuntimeError:  # the process may have no more: as many as there are
            break
    try:
        for n in range(len(things)):
            yield crew.result(n)
    finally:
        crew.dismiss()


class _Crew(Generic[T, R]):
    """begun: how many things are at work or done, from the first on; taken: ditto of results.
    Never more than `most` between them."""

    def __init__(self, work: Callable[[T], R], things: Sequence[T], most: int) -> None:
        self._work = work
        self._things = things
        self._most = most
        self._begun = self._taken = 0
        self._ends = len(things)
        self._done: dict[int, tuple[R] | BaseException] = {}
        self._lock = threading.Lock()
        self._came = threading.Condition(self._lock)  # the one result that is waited for
        self._awaited = -1
        self._room = threading.Condition(self._lock)  # for more
        self._resting = 0  # helpers that wait for it

    def help(self) -> None:
        while (n := self._begin(patient=True)) is not None:
            self._do(n)

    def result(self, n: int) -> R:
        """The nth, once. Raises what the work raised."""
        while n not in self._done:
            if (other := self._begin(patient=False)) is None:
                with self._lock:
                    self._awaited = n
                    self._came.wait_for(lambda: n in self._done)
            else:
                self._do(other)
        with self._lock:
            self._taken = n + 1
            if self._resting:
                self._room.notify()
        done = self._done.pop(n)
        if isinstance(done, BaseException):
            raise done
        return done[0]

    def dismiss(self) -> None:
        with self._lock:
            self._ends = 0
            self._room.notify_all()

    def _begin(self, *, patient: bool) -> int | None:
        """The next thing to do; None: there is none, or, who is not patient, no room for it."""
        with self._lock:
            while self._begun < self._ends and self._begun - self._taken >= self._most:
                if not patient:
                    return None
                self._resting += 1
                self._room.wait()
                self._resting -= 1
            if self._begun >= self._ends:
                return None
            self._begun += 1
            return self._begun - 1

    def _do(self, n: int) -> None:
        try:
            done: tuple[R] | BaseException = (self._work(self._things[n]),)
        except BaseException as exc:
            done = exc
        with self._lock:
            self._done[n] = done
            if self._awaited == n:
                self._came.notify()
