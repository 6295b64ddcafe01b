"""The catalog on Redis or Valkey: one server, or one node of a cluster, for any number of machines.

    {preread}:names            sorted set: name -> last use
    {preread}:context:NAME     hash: newest, and by version summary, invalidated, texts (digests)
    {preread}:bodies:NAME      hash: version -> record without its texts
    {preread}:chunks:NAME      hash: version -> keys of its chunks
    {preread}:texts, :uses     hashes: digest -> text, and by how many versions it is used
    {preread}:sessions:NAME    set of names; {preread}:turns:NAME:SESSION list of [question, answer]
    {preread}:epochs           hash: scope -> epoch
    {preread}:changes          channel: the name or scope that changed, a hint

Every change is one script, so that compare-and-swap holds between machines. Nothing has a time to
live: a server that may evict any key (`maxmemory-policy allkeys-…`) is no place for it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from preread.contexts.catalog import scripts
from preread.contexts.catalog.base import ContextRecord, ContextSummary, Hints, Standing
from preread.contexts.catalog.codec import (
    compress,
    decompress,
    pack,
    read_summary,
    summary_of,
    unpack,
)
from preread.contexts.catalog.conflicts import (
    legible,
    published_first,
    removed_meanwhile,
    session_has_grown,
)
from preread.contexts.catalog.redis_client import Answer, Client, RedisHints
from preread.errors import HomeError

BASE = "{preread}:"
CHANNEL = BASE + "changes"
NAMES, TEXTS, USES, EPOCHS = (BASE + part for part in ("names", "texts", "uses", "epochs"))
KEEP = "CONFIG SET maxmemory-policy volatile-lru"


class RedisCatalog:
    """See catalog/base.py. Opening it asks nobody; every call keeps the client's deadline."""

    def __init__(self, client: Client, log: logging.Logger | None = None) -> None:
        self._client = client
        self._log = log or logging.getLogger("preread.catalog")
        self._asked_policy = False

    def get(self, name: str, version: int | None = None) -> ContextRecord | None:
        keys = [_key("context", name), _key("bodies", name), TEXTS]
        found = self._run(scripts.GET, keys, ["" if version is None else version])
        if not found:
            return None
        with self._legible():
            texts = {found[i].decode(): found[i + 1] for i in range(2, len(found), 2)}
            record = unpack(found[0], lambda digest: decompress(texts[digest]))
            return replace(record, invalidated=found[1].decode())

    def put(self, record: ContextRecord, *, expected: int) -> None:
        if record.version != expected + 1:
            raise ValueError(f"version {record.version} does not follow {expected}")
        body, texts = pack(record)
        name = record.name
        keys = [NAMES, *(_key(part, name) for part in ("context", "bodies", "chunks")), TEXTS, USES]
        summary, chunks = json.dumps(asdict(summary_of(record))), json.dumps(record.chunk_keys)
        values = [CHANNEL, name, expected, record.version, record.created_at, summary, body]
        pairs = [part for digest, text in texts.items() for part in (digest, compress(text))]
        newest = self._run(scripts.PUT, keys, [*values, compress(chunks), *pairs])
        if newest >= 0:
            raise published_first(name, newest, expected)
        self._check_policy()

    def invalidate(self, name: str, reason: str) -> bool:
        values = [CHANNEL, name, reason or "no reason given"]
        return bool(self._run(scripts.INVALIDATE, [_key("context", name)], values))

    def standing(self, held: Sequence[tuple[str, int]]) -> list[Standing]:
        asked = [("HMGET", _key("context", n), "newest", f"invalidated:{v}") for n, v in held]
        return [
            Standing(int(newest or 0), (reason or b"").decode())
            for newest, reason in self._ask(asked)
        ]

    def remove(self, name: str, *, below: int | None = None) -> int:
        parts = [_key(part, name) for part in ("context", "bodies", "chunks")]
        keys = [NAMES, *parts, TEXTS, USES, _key("sessions", name)]
        values = [CHANNEL, name, "" if below is None else below, _key("turns", f"{name}:")]
        return int(self._run(scripts.REMOVE, keys, values))

    def summaries(self) -> list[ContextSummary]:
        (used,) = self._ask([("ZRANGE", NAMES, 0, -1, "WITHSCORES")])
        names = sorted(used[::2])
        last = dict(zip(used[::2], map(float, used[1::2]), strict=True))
        shown = []
        for name, context in zip(names, self._contexts(names), strict=True):
            newest = int(context.get(b"newest", 0))
            if newest:  # else removed between the two questions
                summary = self._summary(context, newest)
                shown.append(replace(summary, last_used=last[name]))
        return shown

    def touch(self, name: str, when: float) -> None:
        self._ask([("ZADD", NAMES, "XX", "GT", when, name)])

    def live_chunks(self, now: float = 0.0) -> frozenset[str]:
        (names,) = self._ask([("ZRANGE", NAMES, 0, -1)])
        contexts = self._contexts(names)
        chunks = self._ask([("HGETALL", _key("chunks", name.decode())) for name in names])
        live: set[str] = set()
        for context, by_version in zip(contexts, chunks, strict=True):
            for version, keys in _pairs(by_version).items():
                # A version published between the two questions is as new as can be.
                known = b"summary:" + version in context
                summary = self._summary(context, int(version)) if known else None
                over = summary and summary.expires_at is not None and now >= summary.expires_at
                if not over and not (summary and summary.invalidated):
                    with self._legible():
                        live.update(json.loads(decompress(keys)))
        return frozenset(live)

    def sessions(self, name: str) -> Sequence[str]:
        (names,) = self._ask([("SMEMBERS", _key("sessions", name))])
        return sorted(session.decode() for session in names)

    def session(self, context: str, session: str) -> tuple[tuple[str, str], ...]:
        (turns,) = self._ask([("LRANGE", _key("turns", f"{context}:{session}"), 0, -1)])
        with self._legible():
            return tuple((question, answer) for question, answer in map(json.loads, turns))

    def append_turn(self, context: str, session: str, turn: tuple[str, str], *, at: int) -> None:
        keys = [_key("context", context), _key("turns", f"{context}:{session}")]
        values = [session, at, json.dumps(turn, ensure_ascii=False)]
        turns = self._run(scripts.APPEND, [*keys, _key("sessions", context)], values)
        if turns == -1:  # else a later context of that name would inherit it
            raise removed_meanwhile(context)
        if turns >= 0:
            raise session_has_grown(context, session, turns, at)

    def epochs(self, scopes: Sequence[str]) -> list[int]:
        if not scopes:
            return []
        (epochs,) = self._ask([("HMGET", EPOCHS, *scopes)])
        return [int(epoch or 0) for epoch in epochs]

    def bump(self, scope: str) -> int:
        return int(self._run(scripts.BUMP, [EPOCHS], [CHANNEL, scope]))

    def listen(self) -> Hints:
        return RedisHints(self._client, CHANNEL)

    def _contexts(self, names: Sequence[bytes]) -> list[dict[bytes, bytes]]:
        asked = [("HGETALL", _key("context", name.decode())) for name in names]
        return [_pairs(answer) for answer in self._ask(asked)]

    def _summary(self, context: dict[bytes, bytes], version: int) -> ContextSummary:
        with self._legible():
            values = json.loads(context[b"summary:%d" % version])
            reason = context.get(b"invalidated:%d" % version, b"").decode()
            return replace(read_summary(values), invalidated=reason)

    def _run(self, script: str, keys: list[str], values: Sequence[object]) -> Any:
        with self._legible():
            return self._client.run(script, keys, values)

    def _ask(self, commands: Sequence[tuple[object, ...]]) -> list[Any]:
        with self._legible():
            return self._client.ask(commands)

    def _legible(self) -> Any:
        place = self._client.place
        return legible(place, f"Remove what is damaged there ({BASE}*) and build again.")

    def _check_policy(self) -> None:
        """Once: a server that evicts what has no time to live would forget names."""
        if self._asked_policy:
            return
        self._asked_policy = True
        with suppress(HomeError):  # not everybody may ask
            (policy,) = self._client.ask([("CONFIG", "GET", "maxmemory-policy")])
            said = _pairs(policy).get(b"maxmemory-policy", b"").decode()
            if said.startswith("allkeys"):
                self._log.warning(
                    "%s evicts any key when it is full (%s), names of contexts included; "
                    "redis-cli %s",
                    *(self._client.place, said, KEEP),
                )


def _key(part: str, name: str) -> str:
    return f"{BASE}{part}:{name}"


def _pairs(answer: Answer) -> dict[bytes, bytes]:
    """A hash, however the protocol gives it."""
    if isinstance(answer, dict):
        return answer
    return dict(zip(answer[::2], answer[1::2], strict=True))
