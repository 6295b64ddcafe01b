"""Values of many keys from one server, some of them on the way while one is taken."""

from __future__ import annotations

from collections import deque

from preread.store.tiers.base import ChunkKey, Room
from preread.store.tiers.redis.asking import Commands
from preread.store.tiers.redis.node import Node, NodeDown
from preread.store.tiers.redis.streams import Deadline
from preread.store.tiers.redis.wire import Command, Connection, Reply, TooLong

WINDOW = 4  # values on the way; more is slower on Redis 7 (docs/log.md)


class Lane:
    """Reads from one server in the order they were wanted. commands: what is sent per key, the
    value being the first reply. A lane that failed stays failed: its keys are looked for elsewhere.
    One thread at a time."""

    def __init__(self, node: Node, commands: Commands, window: int = WINDOW) -> None:
        self.node = node
        self._commands = commands
        self._window = window
        self._wanted: deque[ChunkKey] = deque()
        self._flying: deque[tuple[ChunkKey, int]] = deque()  # asked for; replies that will come
        self._connection: Connection | None = None
        self._failure: NodeDown | None = None

    def want(self, key: ChunkKey) -> None:
        self._wanted.append(key)

    def start(self) -> None:
        """Ask for the first values. A failure shows in `take`."""
        try:
            with self.node.guard():
                self._fill(Deadline(self.node.deadline_s))
        except NodeDown as exc:
            self._failure = exc.bare()

    def take(self, room: Room) -> Reply:
        """The reply about the next key. Raises NodeDown, and what `room` raises."""
        if self._failure is not None:
            raise self._failure.bare()
        try:
            with self.node.guard():
                return self._next(Deadline(self.node.deadline_s), room)
        except NodeDown as exc:
            self._failure = exc.bare()
            raise

    def close(self) -> None:
        """Abandon what is on the way."""
        if self._connection is not None:
            self.node.take_back(self._connection)
            self._connection = None

    def _next(self, deadline: Deadline, room: Room) -> Reply:
        connection = self._fill(deadline)
        _, replies = self._flying.popleft()
        value = connection.reply(deadline, room)
        if isinstance(value, TooLong):  # which ended the connection: ask again for what came after
            self._wanted.extendleft(key for key, _ in reversed(self._flying))
            self._flying.clear()
            self.close()
        else:
            for _ in range(replies - 1):
                connection.reply(deadline)
        self.node.worked()
        return value

    def _fill(self, deadline: Deadline) -> Connection:
        if self._connection is None:
            self._connection = self.node.lend(deadline)
        batch: list[Command] = []
        due = len(self._flying) <= self._window // 2  # several requests in one go: fewer wake-ups
        while due and self._wanted and len(self._flying) < self._window:
            key = self._wanted.popleft()
            commands = self._commands(key)
            self._flying.append((key, len(commands)))
            batch += commands
        if batch:
            self._connection.send(batch, deadline)
        return self._connection
