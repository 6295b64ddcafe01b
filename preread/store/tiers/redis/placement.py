"""Which servers a chunk lives on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import xxhash

from preread.store.tiers.base import ChunkKey
from preread.store.tiers.redis.node import Node
from preread.store.tiers.redis.wire import Reply, ServerError

COPIES = 2


class Redirect(NamedTuple):
    """A server says that another has the key. asking: for this one request only."""

    node: Node
    asking: bool


class Placement(Protocol):
    """Where keys live. Thread-safe."""

    def homes(self, key: ChunkKey) -> Sequence[Node]:
        """The servers that hold the key or should, in the order of asking; none where nobody is
        responsible now. Raises NodeDown when that cannot be known."""
        ...

    def nodes(self) -> Sequence[Node]:
        """All servers that hold chunks. Raises NodeDown when they cannot be known."""
        ...

    def known(self) -> Sequence[Node]:
        """All servers that were ever asked, without asking anybody now."""
        ...

    def redirected(self, node: Node, reply: Reply) -> Redirect | None:
        """Whom to ask instead, if this reply of the node says so. Raises NodeDown when that is
        nobody whom this placement knows."""
        ...

    def failed(self, node: Node) -> None:
        """The server does not answer: perhaps another has taken its place."""
        ...


class Rendezvous:
    """A fixed list of servers, each key on `copies` of them: those with the highest hash of server
    and key (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). When
    a server leaves the list or joins it, only the keys that it holds move."""

    def __init__(self, nodes: Sequence[Node], copies: int = COPIES) -> None:
        self._nodes = tuple(nodes)
        self._copies = copies
        self._seeds = {node: xxhash.xxh3_64_intdigest(str(node.address).encode()) for node in nodes}

    def homes(self, key: ChunkKey) -> Sequence[Node]:
        if len(self._nodes) == 1:
            return self._nodes
        weights = {node: xxhash.xxh3_64_intdigest(key, seed) for node, seed in self._seeds.items()}
        return sorted(self._nodes, key=weights.__getitem__, reverse=True)[: self._copies]

    def nodes(self) -> Sequence[Node]:
        return self._nodes

    def known(self) -> Sequence[Node]:
        return self._nodes

    def redirected(self, node: Node, reply: Reply) -> Redirect | None:
        """Raises NodeDown: a part of a cluster must not look like the whole."""
        if isinstance(reply, ServerError) and reply.code in ("MOVED", "ASK"):
            raise node.down(
                "part of a cluster", "Write redis+cluster:// instead of redis:// in store.tiers."
            )
        return None

    def failed(self, node: Node) -> None:
        return None
