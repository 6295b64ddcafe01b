"""Calls into a medium that may never answer, as a mount whose server is gone: each is waited for at
most so long, and those that hang stay few.

A thread inside the kernel cannot be ended. So a call that hangs keeps its thread until the medium
answers; the circuit breaker sees to it that few are sent after it, and `MOST` that they end there.
The thread that comes back at last is what says that the medium does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from preread.errors import TierError
from preread.store.pump import FEWER, Light, Pump
from preread.store.tiers.breaker import Breaker, Circuit

T = TypeVar("T")

MOST = 8  # calls that hang; no more are sent after them


@dataclass(slots=True, eq=False)
class Call:
    """One call into the medium. until: when it is late, of `time.monotonic`; inf while it does
    nothing there. wanted: somebody still waits for what it does. late: it was noted as such."""

    until: float = inf
    wanted: bool = True
    late: bool = False

    def waited_for(self) -> bool:
        return self.wanted


class Guard:
    """Owns: nobody waits longer than the deadline of a call, and no more than MOST calls hang.
    place: of the medium, for messages. deadline_s: of a call that says nothing else; 0: none, and
    everything runs on the caller's thread. Thread-safe."""

    def __init__(self, place: str, deadline_s: float, breaker: Breaker | None = None) -> None:
        self._place = place
        self._deadline_s = deadline_s
        self._breaker = breaker or Breaker()
        self._lock = threading.Lock()
        self._under_way: set[Call] = set()

    @property
    def hanging(self) -> int:
        """Calls that are late and have not come back."""
        with self._lock:
            return len(self._late())

    def call(self, what: str, work: Callable[[Callable[[], bool]], T], times: float = 1.0) -> T:
        """What `work` returns or raises, which is given a function that says whether it is still
        waited for. times: how many deadlines it may take. Raises TierError when it takes longer,
        and at once where others did so a moment ago."""
        if not self._deadline_s:
            return work(_always)
        call = self._begin(what, times)
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = work(call.waited_for)
            except BaseException as exc:
                self._end(call)
                future.set_exception(exc)
            else:
                self._end(call)
                self._answered()
                future.set_result(result)

        thread = threading.Thread(target=run, name="preread-tier", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:  # it says nothing of the medium, which was not asked
            self._end(call)
            raise TierError(f"Cannot {what} {self._place}: {exc}.", hint=FEWER) from None
        seconds = times * self._deadline_s
        try:
            return future.result(seconds)
        except TimeoutError:
            if future.done():  # its own, or just now
                return future.result()
            call.wanted = False
            with self._lock:
                self._late()
            raise self._too_late(what, seconds) from None

    def stream(self, what: str, things: Iterator[T], light: Light[T]) -> Iterator[T]:
        """These things, made in a thread of their own, some ahead of what is taken (light: see
        Pump); each is waited for one deadline. Raises TierError as `call` does, at the first or any
        later one. Closing it does not wait."""
        if not self._deadline_s:
            return things
        late = self._too_late(what, self._deadline_s)
        return Stream(self._made(what, things), light, self._deadline_s, late)

    def _made(self, what: str, things: Iterator[T]) -> Iterator[T]:
        """In that thread: under way while the next one is made, not while it waits to be taken."""
        call = self._begin(what, 1.0)
        try:
            for thing in things:
                call.until = inf
                self._answered()
                yield thing
                call.until = time.monotonic() + self._deadline_s
            self._answered()
        finally:
            self._end(call)
            if isinstance(things, Generator):
                things.close()

    def _begin(self, what: str, times: float) -> Call:
        with self._lock:
            hanging = len(self._late())
            if hanging >= MOST:
                raise self._error(what, f"{hanging} calls hang in it")
            if not self._breaker.admit():
                again = f"asked again in {self._breaker.left():.1f} s"
                raise self._error(what, f"{self._breaker.cause} ({again})")
            call = Call(time.monotonic() + times * self._deadline_s)
            self._under_way.add(call)
        return call

    def _end(self, call: Call) -> None:
        with self._lock:
            self._under_way.discard(call)

    def _answered(self) -> None:
        """Also late: the medium is back. Where it answers some calls and hangs in others, MOST is
        what bounds them."""
        if self._breaker.circuit is not Circuit.CLOSED:
            self._breaker.succeeded()

    def _late(self) -> list[Call]:
        """Under the lock. Also of those for which nobody has waited so long: they tell as much."""
        now = time.monotonic()
        late = [call for call in self._under_way if call.until <= now]
        for call in late:
            if not call.late:
                call.late = True
                self._breaker.failed("it does not answer")
        return late

    def _too_late(self, what: str, seconds: float) -> TierError:
        return self._error(what, f"no answer within {seconds:g} s")

    def _error(self, what: str, why: str) -> TierError:
        return TierError(
            f"Cannot {what} {self._place}: {why}.",
            hint="Answers stay right; what is stored there is computed again. Is its disk or mount "
            "gone? `preread doctor` asks it again.",
        )


class Stream(Pump[T]):
    """See Guard.stream."""

    def __init__(
        self, things: Iterator[T], light: Light[T], deadline_s: float, late: TierError
    ) -> None:
        self._deadline_s = deadline_s
        self._late = late
        super().__init__(things, light)

    def take(self, until: float) -> T:
        """As a Pump does, and TierError where its own deadline comes first."""
        mine = time.perf_counter() + self._deadline_s
        try:
            return super().take(min(until, mine))
        except TimeoutError:
            if self.closed or until <= mine:
                raise
            raise self._late from None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self.closed:
            raise StopIteration
        try:
            return self.take(inf)
        except BaseException:
            self.close()
            raise


def _always() -> bool:
    return True
