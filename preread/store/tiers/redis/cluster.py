"""Redis Cluster: the servers say who holds which of the 16,384 slots, and when that changes.

https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

import binascii
import threading
import time
from collections.abc import Callable, Sequence

from preread.store.tiers.base import ChunkKey
from preread.store.tiers.redis.dial import Address
from preread.store.tiers.redis.names import chunk_name
from preread.store.tiers.redis.node import Node, NodeDown
from preread.store.tiers.redis.placement import Redirect
from preread.store.tiers.redis.wire import Reply, ServerError

SLOTS = 16384
PORTS = 65535
RELOAD_S = 1.0  # the map of slots is asked for at most this often


def slot_of(name: bytes) -> int:
    """CRC16 (XMODEM) of what stands between the first braces, else of the whole name."""
    start = name.find(b"{")
    end = name.find(b"}", start + 1)
    tag = name[start + 1 : end] if start >= 0 and end > start + 1 else name
    return binascii.crc_hqx(tag, 0) % SLOTS


class Cluster:
    """Slots and their primaries, learnt from any server that answers. seeds: where to ask first;
    make: a node for an address, called once per address."""

    def __init__(
        self,
        seeds: Sequence[Address],
        make: Callable[[Address], Node],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()  # of the map
        self._reloading = threading.Lock()  # one asks, the others go on with the map there is
        self._known: dict[Address, Node] = {}
        self._owners: list[Node | None] = []  # by slot; empty: never learnt
        self._primaries: tuple[Node, ...] = ()
        self._stale = True
        self._asked = -RELOAD_S
        self._turn = 0  # of whom to ask first
        for seed in seeds:
            self._node(seed)

    def homes(self, key: ChunkKey) -> Sequence[Node]:
        self._reload_if_stale()
        owner = self._owners[slot_of(chunk_name(key))]
        return () if owner is None else (owner,)

    def nodes(self) -> Sequence[Node]:
        self._reload_if_stale()
        return self._primaries

    def known(self) -> Sequence[Node]:
        with self._lock:
            return tuple(self._known.values())

    def redirected(self, node: Node, reply: Reply) -> Redirect | None:
        if not isinstance(reply, ServerError) or reply.code not in ("MOVED", "ASK"):
            return None
        host, _, port = reply.text.partition(" ")[2].rpartition(":")
        if not port.isdecimal() or not 0 < int(port[:6]) <= PORTS:
            return None
        if reply.code == "MOVED":
            self._stale = True
        address = Address(host or node.address.host, int(port))  # no host: that of the teller
        return Redirect(self._node(address), reply.code == "ASK")

    def failed(self, node: Node) -> None:
        self._stale = True

    def _node(self, address: Address) -> Node:
        with self._lock:
            if address not in self._known:
                self._known[address] = self._make(address)
            return self._known[address]

    def _reload_if_stale(self) -> None:
        if self._owners:
            due = self._stale and self._clock() - self._asked >= RELOAD_S
            if not due or not self._reloading.acquire(blocking=False):
                return
        else:
            self._reloading.acquire()
        try:
            if not self._owners or self._stale:
                self._reload()
        finally:
            self._reloading.release()

    def _reload(self) -> None:
        """From the first that answers; those that failed lately come last. Keeps the map there is
        when nobody answers, and then asks no others once one deadline is over: whoever needs a key
        waits for this. Raises NodeDown when there is none."""
        began, error = self._clock(), None
        known = [*self.known()]
        first = self._turn % len(known)
        known = known[first:] + known[:first]
        for node in sorted(known, key=lambda node: not node.up()):
            if self._owners and error and self._clock() - began >= node.deadline_s:
                break
            try:
                (reply,) = node.ask([[b"CLUSTER", b"SLOTS"]])
                if not isinstance(reply, list):
                    raise node.down(
                        f"no part of a cluster: {reply!r}",
                        "Write redis:// instead of redis+cluster:// for a single server.",
                    )
                owners = self._parsed(reply, node)
                self._primaries = tuple(dict.fromkeys(filter(None, owners)))
                self._owners = owners
                self._stale = False
                return
            except NodeDown as exc:
                error = error or exc.bare()
                self._turn += 1
            finally:
                self._asked = self._clock()
        if error is not None and not self._owners:
            raise error

    def _parsed(self, ranges: list[Reply], teller: Node) -> list[Node | None]:
        """[[first slot, last slot, [host, port, …] of the primary, replicas …] …]; a host
        that is not given is that of the teller."""
        owners: list[Node | None] = [None] * SLOTS
        for entry in ranges:
            match entry:
                case [int(first), int(last), [host, int(port), *_], *_] if (
                    0 <= first <= last < SLOTS and 0 < port <= PORTS
                ):
                    text = bytes(host) if isinstance(host, memoryview) else b""
                    name = text.decode("utf-8", "replace")
                    known = name not in ("", "?")
                    node = self._node(Address(name if known else teller.address.host, port))
                    owners[first : last + 1] = [node] * (last + 1 - first)
                case _:
                    raise teller.down(f"a map of slots that makes no sense: {entry!r}")
        return owners
