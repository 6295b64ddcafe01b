"""What the servers hold, found by looking, and what a budget asks of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Container, Sequence
from functools import partial
from typing import NamedTuple

from preread.store.tiers.base import OWNER, ChunkEntry, ChunkKey, stated
from preread.store.tiers.eviction import Held, Standing
from preread.store.tiers.redis.asking import Answer, ask
from preread.store.tiers.redis.names import (
    EVERYTHING,
    aside_name,
    chunk_name,
    parsed,
    parsed_share,
    residency_ms,
)
from preread.store.tiers.redis.node import Node, NodeDown, at_once
from preread.store.tiers.redis.placement import Placement
from preread.store.tiers.redis.wire import Command

PAGE = 1000  # names per SCAN
MOMENT_S = 5.0  # between a look-up that touches and what is then written, a slow network included
STEP_MS = 100  # more than the ways to the server differ by
NONE: frozenset[ChunkKey] = frozenset()
BEGUN = 1 << 16  # chunks; and as many in all uses that are known as a whole


class Found(NamedTuple):
    """Each chunk once, as of the copy used last; those set aside have no time of use. share: the
    largest that anybody says is kept."""

    chunks: list[ChunkEntry]
    aside: list[ChunkEntry]
    share: int = 0

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in (*self.chunks, *self.aside))


class _Value(NamedTuple):
    name: bytes
    nbytes: int
    left_ms: int  # to live; -1: for ever


def look(placement: Placement, ttl_s: float, clock: Callable[[], float]) -> Found:
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
    share = 0
    for found in (one for some in answered for one in some):
        share = max(share, parsed_share(found.name))
        if (name := parsed(found.name)) is None:
            continue  # not ours
        key, is_aside = name
        full_ms = residency_ms(key, ttl_s)
        idle_ms = min(max(full_ms - max(found.left_ms, 0), 0), full_ms)
        entry = ChunkEntry(key, found.nbytes, now - idle_ms / 1000)
        entries = aside if is_aside else chunks
        if key not in entries or entries[key].last_used < entry.last_used:
            entries[key] = entry
    return Found(list(chunks.values()), list(aside.values()), share)


def _scan(node: Node) -> list[_Value] | NodeDown:
    found: dict[bytes, _Value] = {}  # a scan may show a name twice
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


def _sized(node: Node, names: list[bytes]) -> list[_Value]:
    """Without what is no string or has gone since."""
    commands: list[Command] = [c for n in names for c in ((b"STRLEN", n), (b"PTTL", n))]
    replies = node.ask(commands)
    found = zip(names, replies[::2], replies[1::2], strict=True)
    return [
        _Value(name, size, left)
        for name, size, left in found
        if isinstance(size, int) and isinstance(left, int) and left != -2
    ]


class Begun:
    """When uses began that chunks are written for, as if each chunk of a prefix had been used
    STEP_MS before the one ahead of it: so a prefix loses its end first. Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._uses: dict[ChunkKey, tuple[float, int]] = {}  # when, and the number of the use
        self._wholes: dict[int, frozenset[ChunkKey]] = {}  # its chunks; the latest uses alone
        self._size = self._number = 0

    def note(self, keys: Collection[ChunkKey]) -> None:
        """Of a prefix, from its beginning. Now; those that are held were touched a moment ago, and
        come before those that are written."""
        now, whole = self._clock() - MOMENT_S, frozenset(keys)
        with self._lock:
            self._number += 1
            self._wholes[self._number] = whole
            self._size += len(whole)
            while self._size > BEGUN and len(self._wholes) > 1:
                self._size -= len(self._wholes.pop(next(iter(self._wholes))))
            for n, key in enumerate(keys):
                self._uses.pop(key, None)
                self._uses[key] = now - n * STEP_MS / 1000, self._number
            while len(self._uses) > BEGUN:
                self._uses.pop(next(iter(self._uses)))

    def when(self, key: ChunkKey) -> float:
        """0.0 where nothing was said of it."""
        return self._uses.get(key, (0.0, 0))[0]

    def together(self, key: ChunkKey) -> Container[ChunkKey]:
        """All chunks of that use, if it was one of the latest."""
        return self._wholes.get(self._uses.get(key, (0.0, 0))[1], NONE)


class Keyspace:
    """All chunks on the servers, for a budget (see eviction.Medium). of: an owner whose chunks
    alone count; None: all do. heard: told what share anybody says is kept."""

    def __init__(
        self,
        placement: Placement,
        look: Callable[[], Found],
        heard: Callable[[int], None],
        of: bytes | None = None,
    ) -> None:
        self._heard = heard
        self._placement = placement
        self._look = look
        self._of = of
        self._aside: list[ChunkKey] = []

    def look(self) -> Held:
        found = self._look()
        if self._of is None:
            self._heard(found.share)
            self._aside = [entry.key for entry in found.aside]
            return Held(found.chunks, sum(entry.nbytes for entry in found.aside))
        owners = self.owners([entry.key for entry in found.chunks])
        return Held([entry for entry in found.chunks if owners[entry.key] == self._of], 0)

    def owners(self, keys: Sequence[ChunkKey]) -> dict[ChunkKey, bytes]:
        """Nobody's where no server tells."""
        span = b"%d" % OWNER.start, b"%d" % (OWNER.stop - 1)
        answers = ask(self._placement, keys, lambda key: [(b"GETRANGE", chunk_name(key), *span)])
        return {key: _said(some) for key, some in zip(keys, answers, strict=True)}

    def evict(self, chunks: Sequence[Standing]) -> None:
        self._drop([one.key for one in chunks], chunk_name)

    def drop_aside(self) -> None:
        self._drop(self._aside, aside_name)

    def _drop(self, keys: Sequence[ChunkKey], name: Callable[[ChunkKey], bytes]) -> None:
        ask(self._placement, keys, lambda key: [(b"UNLINK", name(key))])


def _said(answers: Sequence[Answer]) -> bytes:
    heads = [answer[0] for answer in answers if not isinstance(answer, NodeDown)]
    owners = (stated(bytes(head)) for head in heads if isinstance(head, memoryview))
    return next(filter(None, owners), b"")
