"""Writing behind: chunks for slow tiers wait in a bounded queue and are written by a thread of
their own, so that nobody waits for the network; what could not be written is said."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from preread.errors import TierError
from preread.metrics import Metrics
from preread.store.tiers.base import ChunkKey, Tier

QUEUE_BYTES = 256 << 20
DRAIN_S = 30.0
RETRY_S = 5.0  # a tier that has failed is offered nothing for so long
IDLE_S = 5.0  # then the thread ends; the next chunk starts another

# False: the tier does not want it. Raises TierError where it failed.
Write = Callable[[Tier, ChunkKey, bytes | memoryview], bool]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """refusing: see WriteBack.add."""

    tier: Tier
    key: ChunkKey
    value: bytes | memoryview
    refusing: set[Tier] = field(default_factory=set)


class WriteBack:
    """A queue of at most so many bytes: who adds to a full one waits (back-pressure), but never for
    a tier that fails: with its first failure all that waits for it is given up, logged and counted.
    What a tier does not want is counted, and ends only what goes on from there. At the end of the
    process what still waits is written, for drain_s at most."""

    def __init__(
        self,
        write: Write,
        metrics: Metrics,
        log: logging.Logger,
        *,
        limit: int = QUEUE_BYTES,
        drain_s: float = DRAIN_S,
    ) -> None:
        self._queue = _Queue(write, metrics, log, limit)
        self._drain_s = drain_s
        # Also for who never closes: runs before the interpreter takes the threads away.
        self._end = weakref.finalize(self, _Queue.drain, self._queue, drain_s)

    def add(
        self,
        tier: Tier,
        key: ChunkKey,
        value: bytes | memoryview,
        refusing: set[Tier] | None = None,
    ) -> bool:
        """Write it soon. Waits while the queue is full, drain_s at most. refusing: the same for all
        chunks of one prefix, in their order; tiers that did not want one of them get no later one.
        False: it will not be written, as the queue stayed full, the tier has just failed or is one
        of these."""
        return self._queue.add(
            _Waiting(tier, key, value, set() if refusing is None else refusing), self._drain_s
        )

    def waiting(self, tier: Tier) -> frozenset[ChunkKey]:
        """Keys on their way to the tier."""
        return self._queue.waiting(tier)

    def drain(self) -> dict[str, int]:
        """Wait until all is written, drain_s at most; what then still waits is given up and logged:
        tier name -> chunks."""
        return self._queue.drain(self._drain_s)


class _Queue:
    """Apart from WriteBack, so that its thread does not keep that alive."""

    def __init__(self, write: Write, metrics: Metrics, log: logging.Logger, limit: int) -> None:
        self._write = write
        self._metrics = metrics
        self._log = log
        self._limit = limit
        self._nbytes = 0
        self._items: deque[_Waiting] = deque()
        self._busy: _Waiting | None = None
        self._failed: dict[Tier, float] = {}  # when, of `time.monotonic`
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, item: _Waiting, seconds: float) -> bool:
        def free() -> bool:
            return self._hopeless(item.tier) or not (
                self._nbytes and self._nbytes + len(item.value) > self._limit
            )

        with self._changed:
            if not self._changed.wait_for(free, seconds):
                self._failed[item.tier] = time.monotonic()  # nobody else waits as long for it
                self._changed.notify_all()
            if self._hopeless(item.tier) or item.tier in item.refusing:
                return False
            if self._thread is None and not self._start():
                return False
            self._items.append(item)
            self._nbytes += len(item.value)
            self._changed.notify_all()
        return True

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name="preread-write", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:  # the process may have no more: what comes later may be written
            self._log.warning("nothing is written in the background: %s", exc)
            return False
        self._thread = thread
        return True

    def _hopeless(self, tier: Tier) -> bool:
        """It has failed a moment ago."""
        return time.monotonic() - self._failed.get(tier, -inf) < RETRY_S

    def waiting(self, tier: Tier) -> frozenset[ChunkKey]:
        with self._changed:
            items = [*self._items, *([self._busy] if self._busy else [])]
        return frozenset(item.key for item in items if item.tier is tier)

    def drain(self, seconds: float) -> dict[str, int]:
        until = time.monotonic() + seconds
        with self._changed:
            while self._items or self._busy:
                if not self._changed.wait(max(0.0, until - time.monotonic())):
                    break
            left = [*self._items, *([self._busy] if self._busy else [])]
            self._items.clear()
            self._nbytes = len(self._busy.value) if self._busy else 0
            self._changed.notify_all()
        return self._given_up(left, f"not written within {seconds:g} s")

    def _run(self) -> None:
        while (item := self._next()) is not None:
            written = failed = False
            try:
                written = self._write(item.tier, item.key, item.value)
            except TierError:
                failed = True
            except Exception:  # a bug of that tier: the others still want to be written
                self._log.exception("tier %s: cannot be written", item.tier.name)
                failed = True
            with self._changed:
                lost = [] if written else self._remove(item, failed)
            if failed:
                self._given_up(lost, "the tier failed")
            elif lost:  # who was asked has said why
                self._metrics.add(f"store.unwritten.{item.tier.name}", len(lost))
            with self._changed:  # last: whoever waits for the end finds everything said
                self._busy = None
                self._nbytes -= len(item.value)
                self._changed.notify_all()

    def _next(self) -> _Waiting | None:
        with self._changed:
            if not self._items and not self._changed.wait_for(lambda: self._items, IDLE_S):
                self._thread = None
                return None
            self._busy = self._items.popleft()
            return self._busy

    def _remove(self, item: _Waiting, failed: bool) -> list[_Waiting]:
        """Take out all that is not to be written as this was not; under the lock."""
        if failed:
            self._failed[item.tier] = time.monotonic()
        item.refusing.add(item.tier)
        lost = [
            one
            for one in self._items
            if one.tier is item.tier and (failed or one.refusing is item.refusing)
        ]
        gone = set(map(id, lost))
        self._items = deque(one for one in self._items if id(one) not in gone)
        self._nbytes -= sum(len(one.value) for one in lost)
        return [item, *lost]

    def _given_up(self, items: list[_Waiting], why: str) -> dict[str, int]:
        counts = Counter(item.tier.name for item in items)
        for name, count in counts.items():
            nbytes = sum(len(item.value) for item in items if item.tier.name == name)
            self._metrics.add(f"store.unwritten.{name}", count)
            self._log.warning(
                "tier %s: %d chunks (%d bytes) were not written: %s. They are written when their "
                "context is built or loaded again.",
                name,
                count,
                nbytes,
                why,
            )
        return dict(counts)
