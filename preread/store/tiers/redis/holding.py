"""What the servers hold, found by looking, and the budget that it is kept to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from preread.store.tiers.base import ChunkEntry, ChunkKey
from preread.store.tiers.redis.asking import ask
from preread.store.tiers.redis.names import (
    EVERYTHING,
    aside_name,
    chunk_name,
    parsed,
    residency_ms,
)
from preread.store.tiers.redis.node import Node, NodeDown, at_once
from preread.store.tiers.redis.placement import Placement
from preread.store.tiers.redis.wire import Command

PAGE = 1000  # names per SCAN


class Held(NamedTuple):
    """Each chunk once, as of the copy used last; those set aside have no time of use."""

    chunks: list[ChunkEntry]
    aside: list[ChunkEntry]

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in (*self.chunks, *self.aside))


class _Found(NamedTuple):
    name: bytes
    nbytes: int
    left_ms: int  # to live; -1: for ever


def look(placement: Placement, ttl_s: float, clock: Callable[[], float]) -> Held:
    """Scan every server. Those that are down are left out as long as one answers. Raises NodeDown
    when none does."""
    now = clock()
    outcomes = at_once([partial(_scan, node) for node in placement.nodes()])
    answered = [found for found in outcomes if not isinstance(found, NodeDown)]
    down = [found for found in outcomes if isinstance(found, NodeDown)]
    if down and not answered:
        raise down[0]
    chunks: dict[ChunkKey, ChunkEntry] = {}
    aside: dict[ChunkKey, ChunkEntry] = {}
    for found in (one for some in answered for one in some):
        if (name := parsed(found.name)) is None:
            continue  # not ours
        key, is_aside = name
        full_ms = residency_ms(key, ttl_s)
        idle_ms = min(max(full_ms - max(found.left_ms, 0), 0), full_ms)
        entry = ChunkEntry(key, found.nbytes, now - idle_ms / 1000)
        entries = aside if is_aside else chunks
        if key not in entries or entries[key].last_used < entry.last_used:
            entries[key] = entry
    return Held(list(chunks.values()), list(aside.values()))


def _scan(node: Node) -> list[_Found] | NodeDown:
    found: dict[bytes, _Found] = {}  # a scan may show a name twice
    cursor = b"0"
    try:
        while True:
            (page,) = node.ask([(b"SCAN", cursor, b"MATCH", EVERYTHING, b"COUNT", b"%d" % PAGE)])
            match page:
                case [memoryview() as position, list(names)]:
                    cursor = bytes(position)
                    for one in _sized(node, [bytes(n) for n in names if isinstance(n, memoryview)]):
                        found[one.name] = one
                case _:
                    return node.down(f"cannot be scanned: {page!r}")
            if cursor == b"0":
                return list(found.values())
    except NodeDown as exc:
        return exc.bare()


def _sized(node: Node, names: list[bytes]) -> list[_Found]:
    """Without what is no string or has gone since."""
    commands: list[Command] = [c for n in names for c in ((b"STRLEN", n), (b"PTTL", n))]
    replies = node.ask(commands)
    found = zip(names, replies[::2], replies[1::2], strict=True)
    return [
        _Found(name, size, left)
        for name, size, left in found
        if isinstance(size, int) and isinstance(left, int) and left != -2
    ]


class Budget:
    """Owns: what this process writes stays within `limit` bytes (0: no limit), every copy counted
    once. Held bytes are an estimate, renewed by a look whenever a sixteenth of the limit has been
    written since. Thread-safe."""

    def __init__(self, limit: int, look: Callable[[], Held], placement: Placement) -> None:
        self.limit = limit
        self._look = look
        self._placement = placement
        self._slack = limit // 16
        self._lock = threading.Lock()
        self._held: int | None = None  # None: never looked
        self._unseen = 0  # written since the last look

    def make_room(self, nbytes: int) -> bool:
        """What was set aside goes first, then the least recently used, a sixteenth more than needed
        so that the next writes need no look. False: it can never fit. Raises NodeDown."""
        if not self.limit or nbytes > self.limit:
            return not self.limit
        with self._lock:
            known = self._held is not None and self._unseen <= self._slack
            if not known or (self._held or 0) + nbytes > self.limit:
                self._held, self._unseen = self._evict(nbytes), 0
            self._held = (self._held or 0) + nbytes
            self._unseen += nbytes
        return True

    def _evict(self, nbytes: int) -> int:
        """Bytes held afterwards."""
        held = self._look()
        size = held.nbytes
        if size + nbytes <= self.limit:
            return size
        self._drop([entry.key for entry in held.aside], aside_name)
        size -= sum(entry.nbytes for entry in held.aside)
        goal = max(0, self.limit - self._slack - nbytes)
        victims = []
        for entry in sorted(held.chunks, key=lambda entry: entry.last_used):
            if size <= goal:
                break
            victims.append(entry.key)
            size -= entry.nbytes
        self._drop(victims, chunk_name)
        return size

    def _drop(self, keys: Sequence[ChunkKey], name: Callable[[ChunkKey], bytes]) -> None:
        ask(self._placement, keys, lambda key: [(b"UNLINK", name(key))])
