"""What happens elsewhere to the contexts that this process holds.

The catalog is the truth; a message only says that it is worth a look. A thread looks after each
message and at least every half second, so a lost message changes nothing; who was away (a catalog
that could not be asked, a process that was stopped) looks before the next use.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from preread.contexts.catalog.base import Catalog, Hints
from preread.errors import HomeError, PrereadError

EVERY_S = 0.5
Kind = Literal["published", "invalidated", "removed", "erased"]


@dataclass(frozen=True, slots=True)
class Change:
    """kind `published`: `name` has a newer version (that one), the held one may go on answering;
    `invalidated`: the held version must not answer any more, and why; `removed`: the name is gone;
    `erased`: everything of a scope (`name`: "tenant:…", "model:…") is void, its epoch is
    `version`."""

    kind: Kind
    name: str
    version: int
    reason: str = ""


class Watcher:
    """told: called with each change, once, from the thread that looks (its own, or one that calls
    `look`). Thread-safe. Nothing runs before the first `hold`."""

    def __init__(
        self,
        catalog: Catalog,
        told: Callable[[Change], None],
        *,
        scopes: Sequence[str] = (),
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
        log: logging.Logger | None = None,
    ) -> None:
        """scopes: whose epochs are watched as well."""
        self._catalog = catalog
        self._told = told
        self._every_s = every_s
        self._clock = clock
        self._log = log or logging.getLogger("preread.contexts")
        self._lock = threading.Lock()  # of what is held; never while anybody is told
        self._looking = threading.RLock()  # one looks at a time; who is told may look again
        self._newest: dict[tuple[str, int], int] = {}  # held (name, version) -> newest version
        self._epochs: dict[str, int | None] = dict.fromkeys(scopes)  # None: not known yet
        self._looked: float | None = None
        self._failed = 0.0  # when the catalog last could not be asked, and why
        self._error: HomeError | None = None
        self._thread: threading.Thread | None = None
        self._hints: Hints | None = None
        self._closed = threading.Event()

    def hold(self, name: str, version: int) -> None:
        """Watch a version from now on. Another version of the name that was held is let go."""
        with self._lock:
            if self._closed.is_set() or (name, version) in self._newest:
                return
            self._newest = {key: n for key, n in self._newest.items() if key[0] != name}
            self._newest[name, version] = version
            if self._thread is None:
                self._hints = self._catalog.listen()
                self._thread = threading.Thread(
                    target=self._run, args=(self._hints,), name="preread-watch", daemon=True
                )
                self._thread.start()

    def look(self) -> None:
        """Before a use: nothing to do if it was looked at lately. Raises HomeError when the catalog
        cannot be asked: what may have been invalidated must not answer."""
        if self._lately(self._looked):
            return
        came = self._clock()
        with self._looking:
            if self._lately(self._looked):
                return
            if self._error is not None and self._failed > came:  # who waited need not ask again
                raise _again(self._error)
            self.look_now()

    def look_now(self) -> None:
        """Ask the catalog and tell what has changed since the last time. Raises HomeError."""
        with self._looking:
            began = self._clock()
            with self._lock:
                held = list(self._newest)
            try:  # all of it is known before any of it counts as seen
                scopes = list(self._epochs)
                epochs = dict(zip(scopes, self._catalog.epochs(scopes), strict=True))
                standings = self._catalog.standing(held)
            except HomeError as exc:
                self._failed, self._error = self._clock(), exc
                raise
            changes = self._of_epochs(epochs)
            for key, standing in zip(held, standings, strict=True):
                changes += self._of(key, standing.newest, standing.invalidated)
            self._looked = began
            for change in changes:
                self._tell(change)

    def _lately(self, when: float | None) -> bool:
        return when is not None and self._clock() - when <= 2 * self._every_s

    def close(self) -> None:
        """End the thread. Idempotent."""
        with self._lock:
            self._closed.set()
            hints, thread = self._hints, self._thread
        if hints is not None:
            hints.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _tell(self, change: Change) -> None:
        try:
            self._told(change)
        except Exception:  # the next one must still be told
            self._log.exception("nobody could be told of %s", change)

    def _of(self, key: tuple[str, int], newest: int, invalidated: str) -> list[Change]:
        """What is new about one held version; what must not answer any more is let go."""
        name, version = key
        with self._lock:
            if (known := self._newest.get(key)) is None:
                return []  # let go meanwhile
            if invalidated or not newest:
                del self._newest[key]
                kind: Kind = "invalidated" if invalidated else "removed"
                return [Change(kind, name, version, invalidated)]
            if newest == known:
                return []
            self._newest[key] = newest
        return [Change("published", name, newest)]

    def _of_epochs(self, epochs: dict[str, int]) -> list[Change]:
        known, self._epochs = self._epochs, {**epochs}
        return [
            Change("erased", scope, epoch)
            for scope, epoch in epochs.items()
            if known[scope] not in (None, epoch)
        ]

    def _run(self, hints: Hints) -> None:
        failing = False
        while not self._closed.is_set():
            try:
                self.look_now()
                failing = False
            except PrereadError as exc:
                if not failing:  # once, not twice a second
                    self._log.warning("changes elsewhere are not seen until it is back: %s", exc)
                failing = True
            hints.wait(self._every_s)


def _again(error: HomeError) -> HomeError:
    """The same for another thread."""
    made = HomeError(error.message, hint=error.hint)
    made.retryable = error.retryable
    return made
