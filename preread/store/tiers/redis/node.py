"""One server: connections that wait for the next request, and a breaker for when it fails."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from preread.errors import TierError
from preread.store.tiers.base import Room, fresh
from preread.store.tiers.breaker import Breaker, Circuit
from preread.store.tiers.redis.dial import Address, Login, LoginRefused, dial
from preread.store.tiers.redis.streams import Deadline
from preread.store.tiers.redis.wire import Command, Connection, ProtocolError, Reply

T = TypeVar("T")

DEADLINE_S = 1.0
SAY_S = 60.0  # a server that refuses is spoken of this often
IDLE = 4  # connections kept for the next requests
MAX_BULK = 512 << 20  # bytes of a value, proto-max-bulk-len of a server that says nothing else


class NodeDown(TierError):
    """One server cannot be asked, or does not do what it is asked."""

    def bare(self) -> NodeDown:
        """To be kept as a value: without the frames it came through, which would stay alive with
        it, and so would the connections they hold."""
        return NodeDown(self.message, hint=self.hint)


class Node:
    """Thread-safe. deadline_s: for one request and its replies, or for one value of many.
    settings: of the server, as far as they were asked for; None: not yet."""

    def __init__(
        self,
        address: Address,
        login: Login,
        *,
        deadline_s: float = DEADLINE_S,
        idle: int = IDLE,
        breaker: Breaker | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        self.address = address
        self.deadline_s = deadline_s
        self.breaker = breaker or Breaker()
        self.settings: dict[str, str] | None = None
        self._login = login
        self._most_idle = idle
        self._hint = ""  # of the last failure
        self._said: dict[str, float] = {}  # error code -> when it was logged
        self._log = log or logging.getLogger("preread.store")
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._owner = os.getpid()

    @property
    def max_value(self) -> int:
        """Bytes of the largest value that the server takes."""
        return int((self.settings or {}).get("proto-max-bulk-len", MAX_BULK))

    def up(self) -> bool:
        """As far as is known without asking."""
        return self.breaker.closed()

    def ask(self, commands: Sequence[Command], room: Room = fresh) -> list[Reply]:
        """One round trip. A value that is too long ends the connection: what comes after it in the
        same trip is None. Raises NodeDown."""
        if not commands:
            return []
        deadline = Deadline(self.deadline_s)
        with self.guard():
            connection = self.lend(deadline)
            try:
                connection.send(commands, deadline)
                replies: list[Reply] = []
                while len(replies) < len(commands) and not connection.closed:
                    replies.append(connection.reply(deadline, room))
            finally:
                self.take_back(connection)
        self.worked()
        return replies + [None] * (len(commands) - len(replies))

    def lend(self, deadline: Deadline) -> Connection:
        """A connection for the caller alone, to be given to `take_back`; inside `guard`."""
        if not self.breaker.admit():
            again = f"asked again in {self.breaker.left():.1f} s"
            raise self.down(f"{self.breaker.cause} ({again})", self._hint)
        with self._lock:
            if self._owner != os.getpid():  # forked: these sockets are the parent's
                self._idle, self._owner = [], os.getpid()
            while self._idle:
                connection = self._idle.pop()
                if connection.idle():
                    return connection
                connection.close()
        return dial(self.address, self._login, deadline)

    def take_back(self, connection: Connection) -> None:
        """Keep it for the next one, unless replies are still to come or were cut off."""
        with self._lock:
            if connection.idle() and len(self._idle) < self._most_idle:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """What says that the server cannot be reached becomes NodeDown and opens the breaker."""
        try:
            yield
        except (OSError, ProtocolError, LoginRefused) as exc:
            hint = ""
            if isinstance(exc, LoginRefused):
                hint = "Check user, password and database in the tier's URL."
            text = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            text = text.rstrip(".")
            self._hint = hint
            if self.breaker.failed(text):
                self._log.warning(
                    "redis server %s: %s; not asked for %.1f s.",
                    self.address,
                    text,
                    self.breaker.left(),
                )
            raise self.down(text, hint) from exc

    def worked(self) -> None:
        """It has answered."""
        if self.breaker.circuit is not Circuit.CLOSED:
            self._log.info("redis server %s answers again.", self.address)
        self.breaker.succeeded()

    def refused(self, code: str, text: str, hint: str) -> NodeDown:
        """It answers, but does not do what it is asked. Said here, as another server may do it and
        then nobody else would say so; once a minute."""
        error = self.down(f"{code} {text}".rstrip(" ."), hint)
        now = time.monotonic()
        if now - self._said.get(code, -SAY_S) >= SAY_S:
            self._said[code] = now
            self._log.warning("%s", error)
        return error

    def down(self, why: str, hint: str = "") -> NodeDown:
        return NodeDown(
            f"Redis server {self.address}: {why}.",
            hint=hint or "Answers stay right; what is stored there is computed again.",
        )


def at_once(works: Sequence[Callable[[], T]]) -> list[T]:
    """What each of the works gives, in order. All run at the same time, each in a thread of its
    own: a server that hangs takes nobody else's time. Raises what the first that failed raised."""
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def run(n: int) -> None:
        try:
            results[n] = works[n]()
        except BaseException as exc:
            errors[n] = exc

    threads = [threading.Thread(target=run, args=(n,)) for n in range(1, len(works))]
    for thread in threads:
        thread.start()
    if works:
        run(0)
    for thread in threads:
        thread.join()
    for n in sorted(errors):
        raise errors[n]
    return [results[n] for n in range(len(works))]
