"""What this machine takes: to bring bytes from each tier, to compute tokens of this model, and how
much slower either is while the other is under way.

Measured as the work is done, never in a benchmark: a tier's time holds the look-up of the first
value, the client's copy, verification and the sink; a computed token's that of its step, with
whatever else ran in it. A few of the latest measurements of each size are kept, in the home too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from math import ceil, inf, isfinite
from typing import NamedTuple, Protocol

from preread.store.fit import fit

LATEST = 8  # measurements of each size (by powers of two)
SIZES = 16  # kept at once; of another the oldest goes
SAVE_EVERY_S = 30.0
# Of the bytes that a chunk is smaller than any that was measured, counted all the same: how much of
# a chunk's time is for its bytes cannot be told from chunks of one size.
SHORT = 0.3
_PREFILL = "prefill"


class Memory(Protocol):
    """Where measurements outlive the process. keys: `tier/<name>`, `prefill`, and how the two
    disturb each other: `loading-beside/<name>`, `computing-beside/<name>`."""

    def get(self, key: str) -> list[list[float]]:
        """As they were kept; [] if they were not."""
        ...

    def keep(self, key: str, rows: list[list[float]]) -> None: ...


class Pace(NamedTuple):
    """Of a tier: n bytes in c chunks take fixed_s + n * byte_s + c * chunk_s seconds. least: bytes
    of the smallest chunks that were measured; see SHORT."""

    fixed_s: float
    byte_s: float
    chunk_s: float = 0.0
    least: float = 0.0

    def seconds(self, nbytes: int, chunks: int) -> float:
        return self.fixed_s + self.more(nbytes, chunks)

    def more(self, nbytes: int, chunks: int) -> float:
        """What so much adds to a load."""
        short = max(0.0, chunks * self.least - nbytes)
        return (nbytes + SHORT * short) * self.byte_s + chunks * self.chunk_s


class Prefill(NamedTuple):
    """Of a model: n tokens at mean position p take step_s + n * (token_s + p * past_s) seconds in
    one step. most: tokens of the largest step that was measured; more take several, so that what is
    alike in steps of one size is not taken for what any number takes."""

    step_s: float
    token_s: float
    past_s: float
    most: float = inf

    def seconds(self, start: int, end: int) -> float:
        """Tokens [start, end), those before them being there. 0 for none."""
        if (n := end - start) <= 0:
            return 0.0
        steps = max(1, ceil(n / self.most))
        return steps * self.step_s + n * (self.token_s + (start + end) / 2 * self.past_s)

    def times(self, factor: float) -> Prefill:
        """Of a model that takes so many times as long."""
        step_s, token_s, past_s, most = self
        return Prefill(factor * step_s, factor * token_s, factor * past_s, most)


class Slowed(NamedTuple):
    """How many times as long each takes while the other is under way, than alone."""

    computing: float = 1.0
    loading: float = 1.0


class Rates:
    """The measurements of one model on one machine. Thread-safe."""

    def __init__(
        self, memory: Memory | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._memory = memory
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, Samples] = {}
        self._saved = clock()

    def loaded(self, tier: str, nbytes: int, chunks: int, seconds: float) -> None:
        """So many bytes came from the tier in that time, in so many chunks."""
        size = nbytes.bit_length() * 64 + chunks.bit_length() if nbytes and chunks else 0
        self._add(f"tier/{tier}", size, [float(nbytes), float(chunks)], seconds)

    def computed(self, start: int, end: int, seconds: float) -> None:
        """Tokens [start, end) were computed in that time."""
        if end > start:
            size = (end - start).bit_length() * 64 + end.bit_length()
            self._add(_PREFILL, size, [float(start), float(end)], seconds)

    def pace(self, tier: str) -> Pace | None:
        """None if nothing was ever measured."""
        with self._lock:
            samples = self._samples(f"tier/{tier}")
            found = samples.solved(lambda row: [row[0], 1.0, row[1]])
            least = min((row[0] / row[1] for row in samples.rows()), default=0.0)
        return Pace(found[1], found[0], found[2], least) if found else None

    def prefill(self) -> Prefill | None:
        """None if nothing was ever measured."""
        with self._lock:
            samples = self._samples(_PREFILL)
            found = samples.solved(_features)
            most = max((row[1] - row[0] for row in samples.rows()), default=inf)
        return Prefill(found[2], found[0], found[1], most) if found else None

    def loaded_beside(self, tier: str, foreseen_s: float, seconds: float) -> None:
        """A load that alone was foreseen to take so long took `seconds` while tokens were
        computed."""
        self._beside("loading", tier, foreseen_s, seconds)

    def computed_beside(self, tier: str, foreseen_s: float, seconds: float) -> None:
        """Computing took `seconds` while that tier was loaded from."""
        self._beside("computing", tier, foreseen_s, seconds)

    def slowed(self, tiers: Iterable[str]) -> Slowed:
        """When it is loaded from these: by the worst of them. 1 where nothing was measured, so
        that it is tried; never less."""
        names = tuple(tiers)
        return Slowed(*(self._times(kind, names) for kind in ("computing", "loading")))

    def age_s(self, tier: str) -> float:
        """Seconds since the tier was last measured; infinite if it never was."""
        with self._lock:
            return self._clock() - self._samples(f"tier/{tier}").latest

    def save(self) -> None:
        """Remember everything measured so far."""
        with self._lock:
            fresh = {key: kept.rows() for key, kept in self._kept.items() if kept.take_unsaved()}
            self._saved = self._clock()
        for key, rows in fresh.items():
            if self._memory is not None:
                self._memory.keep(key, rows)

    def _beside(self, kind: str, tier: str, foreseen_s: float, seconds: float) -> None:
        if foreseen_s > 0:
            size = max(1, int(foreseen_s * 1e3).bit_length())
            self._add(f"{kind}-beside/{tier}", size, [foreseen_s], seconds)

    def _times(self, kind: str, tiers: Iterable[str]) -> float:
        with self._lock:
            found = [self._samples(f"{kind}-beside/{t}").solved(lambda row: row[:1]) for t in tiers]
        return max([1.0, *(times[0] for times in found if times)])

    def _add(self, key: str, size: int, row: list[float], seconds: float) -> None:
        if seconds <= 0 or size <= 0:
            return
        with self._lock:
            self._samples(key).add(size, [*row, seconds, self._clock()])
            due = self._clock() - self._saved >= SAVE_EVERY_S
        if due:
            self.save()

    def _samples(self, key: str) -> Samples:
        if key not in self._kept:
            rows = self._memory.get(key) if self._memory else []
            sound = [row for row in rows if _sound(row, key)]
            self._kept[key] = Samples(sound, cold=key == _PREFILL)
        return self._kept[key]


class Samples:
    """Measurements as rows [what was done…, seconds, when], the latest of each size. Rows that were
    remembered count as one size, which goes first. The first of a size in this process gives way
    to the second: it holds what is done once, as compiling a program and opening a connection.
    cold: where nothing is remembered, the first of all gives way to the next of any size."""

    def __init__(self, remembered: list[list[float]], *, cold: bool = False) -> None:
        self._sizes: dict[int, deque[list[float]]] = {}
        self._first: dict[int, list[float]] = {}  # of sizes that were measured once
        self._cold: int | None = 0 if cold and not remembered else None  # size of the first of all
        self._solved: tuple[float, ...] | None = None
        self._unsolved = 0  # measurements since
        self._unsaved = False
        if remembered:
            self._sizes[0] = deque(remembered[-LATEST * SIZES :])

    @property
    def latest(self) -> float:
        return max((row[-1] for row in self.rows()), default=float("-inf"))

    def add(self, size: int, row: list[float]) -> None:
        if self._cold is not None:
            self._first.pop(self._cold, None)
            self._sizes.pop(self._cold, None)
            self._cold = size if self._cold == 0 else None
        if (rows := self._sizes.pop(size, None)) is None:
            rows, self._first[size] = deque(maxlen=LATEST), row
        elif (first := self._first.pop(size, None)) is not None:
            rows.remove(first)
        rows.append(row)
        self._sizes[size] = rows
        if old := self._sizes.get(0):  # what is new outweighs what was
            old.popleft()
        while len(self._sizes) > SIZES:
            self._first.pop(oldest := next(iter(self._sizes)), None)
            del self._sizes[oldest]
        self._unsolved += 1
        self._unsaved = True

    def rows(self) -> list[list[float]]:
        """The oldest first."""
        return sorted((row for rows in self._sizes.values() for row in rows), key=lambda r: r[-1])

    def take_unsaved(self) -> bool:
        unsaved, self._unsaved = self._unsaved, False
        return unsaved

    def solved(self, features: Callable[[list[float]], list[float]]) -> tuple[float, ...] | None:
        """See `fit`; None without measurements. Solved anew (some milliseconds) when an eighth of
        them is new."""
        count = sum(map(len, self._sizes.values()))
        if count and (self._solved is None or self._unsolved * 8 >= count):
            rows = self.rows()
            self._solved = fit([features(row) for row in rows], [row[-2] for row in rows])
            self._unsolved = 0
        return self._solved


def _sound(row: list[float], key: str) -> bool:
    """As it is kept here; not what is damaged, or of another release."""
    width = 4 if key == _PREFILL or key.startswith("tier/") else 3
    if len(row) != width or not all(map(isfinite, row)):
        return False
    first, *rest = row[:-1]
    return min(rest) > 0 and (0 <= first < rest[0] if key == _PREFILL else first > 0)


def _features(row: list[float]) -> list[float]:
    start, end = row[:2]
    return [end - start, (end - start) * (start + end) / 2, 1.0]
