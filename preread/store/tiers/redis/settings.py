"""What a server is set to, and what should be set otherwise for a cache of KV."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from preread.store.tiers.redis.node import Node, NodeDown
from preread.store.tiers.redis.wire import Command

NAMES = ("maxmemory", "maxmemory-policy", "proto-max-bulk-len", "cluster-require-full-coverage")
NUMBERS = ("maxmemory", "proto-max-bulk-len")


def inspect(node: Node, log: logging.Logger, *, cluster: bool, budget: int) -> None:
    """Ask once for the settings and warn about those that make a bad cache. A server that does not
    tell (many hosted ones) is taken as it is. Raises nothing: who cannot be asked now is asked
    again later."""
    commands: list[Command] = [(b"CONFIG", b"GET", name.encode()) for name in NAMES]
    try:
        replies = node.ask(commands)
    except NodeDown:
        return
    found: dict[str, str] = {}
    for reply in replies:
        match reply:
            case [memoryview() as name, memoryview() as value]:
                found[_text(name)] = _text(value)
    for number in NUMBERS:
        if not found.get(number, "0").isdecimal():
            del found[number]  # as if it did not tell
    node.settings = found
    for line in advice(found, str(node.address), cluster=cluster, budget=budget):
        log.warning("%s", line)


def advice(settings: dict[str, str], address: str, *, cluster: bool, budget: int) -> list[str]:
    """A sentence and a command for each setting that should be another."""
    host, _, port = address.rpartition(":")
    command = f"redis-cli -h {host.strip('[]')} -p {port} CONFIG SET"
    lines = []
    if cluster and settings.get("cluster-require-full-coverage") == "yes":
        lines.append(
            f"redis server {address}: when one server of the cluster is lost, all of them refuse: "
            f"`{command} cluster-require-full-coverage no` on every server."
        )
    if settings.get("maxmemory") == "0" and not budget:
        lines.append(
            f"redis server {address}: nothing limits its memory: `{command} maxmemory 10gb`, or "
            "add ?budget=10GB to the tier's URL."
        )
    if settings.get("maxmemory", "0") != "0" and settings.get("maxmemory-policy") == "noeviction":
        lines.append(
            f"redis server {address}: when it is full it refuses, instead of dropping what was not "
            f"used for long: `{command} maxmemory-policy allkeys-lru`."
        )
    return lines


def memory_limit(nodes: Sequence[Node]) -> int:
    """Bytes that the servers may hold together; 0 where one has no limit or does not tell."""
    limits = [int((node.settings or {}).get("maxmemory", 0)) for node in nodes]
    return sum(limits) if all(limits) else 0


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")
