"""Questions about many keys: one round trip per server, all servers at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeAlias

from preread.store.tiers.base import ChunkKey, Room, fresh
from preread.store.tiers.redis.node import Node, NodeDown, at_once
from preread.store.tiers.redis.placement import Placement, Redirect
from preread.store.tiers.redis.wire import Command, Reply, ServerError

HOPS = 4  # a key is followed to another server this often
ASKING: Command = (b"ASKING",)
NO_SUCH_KEY = ServerError("ERR", "no such key")

Commands: TypeAlias = Callable[[ChunkKey], list[Command]]
Answer: TypeAlias = list[Reply] | NodeDown  # of one server about one key, a reply per command

_HINTS = {
    "OOM": "It is full and may not evict: `redis-cli CONFIG SET maxmemory-policy allkeys-lru`, or "
    "give the tier a budget.",
    "READONLY": "It is a replica: name its primary in store.tiers.",
    "NOAUTH": "Put user and password into the tier's URL.",
    "NOPERM": "Allow the user `~prd:* +@read +@write +@keyspace +@connection +cluster|slots`.",
    "CLUSTERDOWN": "`redis-cli CONFIG SET cluster-require-full-coverage no` on every server keeps "
    "the rest of a cluster at work.",
    "MISCONF": "It cannot save to its disk and so refuses writes: `redis-cli CONFIG SET save ''`.",
}


def ask(placement: Placement, keys: Sequence[ChunkKey], commands: Commands) -> list[list[Answer]]:
    """The answers about each key, one of every home. Redirections are followed. Raises NodeDown
    when nobody knows where keys live."""
    answers: list[list[Answer]] = [[] for _ in keys]
    work: dict[Redirect, list[int]] = {}
    for n, key in enumerate(keys):
        for node in placement.homes(key):
            work.setdefault(Redirect(node, False), []).append(n)
    for hop in range(HOPS + 1):
        rounds = [partial(_ask_one, to, [keys[n] for n in ns], commands) for to, ns in work.items()]
        outcomes = at_once(rounds)
        elsewhere: dict[Redirect, list[int]] = {}
        for (to, numbers), outcome in zip(work.items(), outcomes, strict=True):
            if isinstance(outcome, NodeDown):
                placement.failed(to.node)
                for n in numbers:
                    answers[n].append(outcome)
                continue
            for n, replies in zip(numbers, outcome, strict=True):
                target = placement.redirected(to.node, replies[0]) if hop < HOPS else None
                if target is None:
                    answers[n].append(judged(to.node, replies))
                else:
                    elsewhere.setdefault(target, []).append(n)
        if not elsewhere:
            break
        work = elsewhere
    return answers


def ask_about(
    placement: Placement, node: Node, key: ChunkKey, commands: Commands, room: Room = fresh
) -> Answer:
    """The answer of one server, or of the one that it sends us to."""
    outcome = _ask_one(Redirect(node, False), [key], commands, room)
    if isinstance(outcome, NodeDown):
        placement.failed(node)
        return outcome
    return followed(placement, node, outcome[0], key, commands, room)


def followed(
    placement: Placement,
    node: Node,
    replies: list[Reply],
    key: ChunkKey,
    commands: Commands,
    room: Room = fresh,
) -> Answer:
    """The replies of the node, or those of the server that they send us to."""
    for _ in range(HOPS):
        target = placement.redirected(node, replies[0])
        if target is None:
            break
        node = target.node
        outcome = _ask_one(target, [key], commands, room)
        if isinstance(outcome, NodeDown):
            placement.failed(node)
            return outcome
        replies = outcome[0]
    return judged(node, replies)


def judged(node: Node, replies: list[Reply]) -> Answer:
    """The replies, or what is wrong when the first is an error. What is wrong with the one key is
    the asker's to see, and so are the commands after the first."""
    first = replies[0]
    if not isinstance(first, ServerError) or first.code == "WRONGTYPE" or first == NO_SUCH_KEY:
        return replies
    return node.refused(first.code, first.text, _HINTS.get(first.code, ""))


def verdict(placement: Placement, asked: Iterable[Node], answers: Iterable[Answer]) -> None:
    """Raise what went wrong when nobody has answered and nobody else is left: then the tier has
    failed. Otherwise what could not be asked is a miss, and the others go on."""
    failure: NodeDown | None = None
    for answer in answers:
        if not isinstance(answer, NodeDown):
            return
        failure = failure or answer
    others = set(placement.nodes()) - set(asked)
    if failure is not None and not any(node.up() for node in others):
        raise failure


def _ask_one(
    to: Redirect, keys: list[ChunkKey], commands: Commands, room: Room = fresh
) -> list[list[Reply]] | NodeDown:
    """Replies per key."""
    per_key = [commands(key) for key in keys]
    flat = [command for some in per_key for command in some]
    if to.asking:
        flat = [one for command in flat for one in (ASKING, command)]
    try:
        replies = iter(to.node.ask(flat, room))
    except NodeDown as exc:
        return exc.bare()
    if to.asking:
        replies = iter(list(replies)[1::2])
    return [[next(replies) for _ in some] for some in per_key]
