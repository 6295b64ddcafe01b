"""Both at once: a prefix is computed from its front while a tier gives it from its end.

They meet where they meet: nothing that is predicted here need be right. Predictions only say how
far the front should go at once, so that it does not compute what is about to arrive, and whether to
wait for the last of it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING

from preread.store.keys import Box

if TYPE_CHECKING:
    import torch

    from preread.engine.segment import Stretch
    from preread.engine.uploads import Behind, Uploads

TRUST = 0.5  # of the newest measurement of a load's pace


class Meeting:
    """Tokens [start, upto) of one prefix. Those before `front` are there, or are computed next;
    those from `back` on have come, or are not to be had and are computed later. The engine thread
    takes from the front, the loading thread gives from the back (store.loading.Front); the front
    never steps on what has come, and the load writes nothing before the front. computed: how many
    the engine took.

    computed_s(a, b): seconds that computing tokens [a, b) takes beside a load. token_s: seconds a
    loaded token is foreseen to take, then measured. write(first, box, kv): tokens of a box from
    `first` on have come; uploads: by which it copies them. woken: called after each span, by the
    loading thread. wanted: whether somebody still wants it.
    """

    def __init__(
        self,
        upto: int,
        span: int,
        token_s: float,
        computed_s: Callable[[int, int], float],
        write: Callable[[int, Box, torch.Tensor], None],
        uploads: Uploads,
        woken: Callable[[], None],
        wanted: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.upto = upto
        self.front = self.start = 0
        self.computed = 0
        self._back = upto
        self._span = span
        self._token_s = token_s
        self._computed_s = computed_s
        self._write = write
        self._uploads = uploads
        self._behind: Behind | None = None  # what was copied and no step is behind yet
        self._woken = woken
        self._wanted = wanted
        self._clock = clock
        self._lock = threading.Lock()
        self._stop: Callable[[], None] = _nothing
        self._over = False  # nothing more comes
        self._came: list[Stretch] = []  # and nobody has fetched it
        self._next = max(0, upto - span)  # where the span begins that is on its way
        self._last = clock()  # when one came
        self._until: float | None = None  # when waiting ends, while the engine waits
        self._waited = False

    # --- the engine thread ---

    def open(self, start: int) -> None:
        """The tokens before `start` are there."""
        self.front = self.start = start
        self._next = max(start, self._next)

    def fetch(self) -> list[Stretch]:
        """What has come since the last call: what is launched from now on may see it."""
        with self._lock:
            self._pass()
            came, self._came = self._came, []
            return came

    def take(self, base: int, want: int) -> int:
        """How many tokens from `base` on, which is ready up to there, to compute now: at most
        `want`. They are the engine's from now on. 0: what comes is waited for, see `wait_s`."""
        with self._lock:
            self.front = max(self.front, base)
            want = min(want, self.upto - base)
            if self.front > base:
                return min(want, self.front - base)
            if base < self._back:
                taken = want if self._over else min(want, self._share(base))
                taken = min(taken, self._back - base)
            else:  # behind the load: what it did not bring
                taken = 0 if self._came else want
            self.front = base + taken
            self.computed += taken
            self._pass()  # of the span on its way, the first boxes may be on theirs
            met = self.front >= self._back
        if met:
            self._stop()
        return taken

    def wait_s(self) -> float | None:
        """For how long the engine should wait before it looks again, if nothing comes; None: it
        does not wait."""
        with self._lock:
            return None if self._until is None else max(0.0, self._until - self._clock())

    def resumed(self) -> bool:
        """Whether the engine had waited before the last `take`. Asked once."""
        if self._until is not None:
            return False
        waited, self._waited = self._waited, False
        return waited

    def quit(self) -> None:
        """Nothing more is wanted."""
        with self._lock:
            self._over = True
        self._stop()

    def _pass(self) -> None:
        """What is launched from now on comes after all copies so far."""
        behind, self._behind = self._behind, None
        if behind is not None:
            behind()

    def _share(self, base: int) -> int:
        """How far the front should go at once."""
        now, back = self._clock(), self._back
        goal = self._best(base, now)
        if goal == base:
            whole_s = self._computed_s(base, back)
            if self._until is None:
                self._until = now + whole_s
                self._waited = True
            if now < self._until:
                return 0
            goal, self._over = back, True
        self._until = None
        taken = goal - base
        # A load that proves quicker should not have to wait for the end of a large step.
        return taken if taken <= self._span or goal == back else max(self._span, taken // 2)

    def _best(self, base: int, now: float) -> int:
        """Where they should meet, so that all is there soonest: the beginning of a span, or right
        here (all is loaded) or at the back (all is computed)."""
        late_s = now - (self._last + self._token_s * (self._back - self._next))
        coming_s = abs(late_s)  # what is late by so much will take as long again

        def loaded_s(token: int) -> float:
            if token >= self._back:
                return 0.0
            return coming_s + max(0, self._next - token) * self._token_s

        def whole_s(token: int) -> float:
            computed = self._computed_s(base, token) if token > base else 0.0
            return max(computed, loaded_s(token))

        grid = range(base // self._span * self._span + self._span, self._back, self._span)
        at = bisect_left(grid, True, key=lambda n: self._computed_s(base, n) >= loaded_s(n))
        near: list[int] = [base, *grid[max(0, at - 1) : at + 1], self._back]
        return min(near, key=whole_s)

    # --- the loading thread: store.loading.Front ---

    def listen(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    def begin(self, start: int, end: int) -> bool:
        with self._lock:
            self._over = self._over or not self._wanted()
            if self._over or self.front >= end:
                return False
            self._next = start
            return True

    def fill(self, box: Box, kv: torch.Tensor) -> None:
        self._uploads.ease()  # before: there may be many boxes in a span
        # The front must not begin to compute here meanwhile. To a device that works by itself the
        # copy is only given, so nobody waits for it, nor for a step, in here.
        with self._lock:
            first = max(box.token_start, self.front)
            if first < box.token_end:
                self._write(first, box, kv)
                self._behind = self._uploads.behind()

    def end(self, start: int, end: int, *, whole: bool) -> int:
        with self._lock:
            first, now = max(start, self.front), self._clock()
            loaded = max(0, end - first) if whole else 0
            if loaded:
                self._came.append((first, end))
            self._back = min(end, first)
            newest_s = (now - self._last) / (end - start)
            self._token_s += TRUST * (newest_s - self._token_s)
            self._last = now
            self._next = max(self.start, start - self._span)
        self._woken()
        return loaded


def _nothing() -> None:
    pass
