"""What a request is, and where it stands in the order that reuses most: from the content of its
parts, without a tokenizer.

digest = blake2b-16(order key, prefix key, text): equal requests, equal digests.
place  = model, then a mark and a digest per message of the prefix, an end mark, the order, then
(BEGINNING bytes, the rest zero) a checksum of the text's first 256, 1,024, 4,096 … characters.
Sorted by it, requests stand side by side that begin alike: by messages exactly (nested, as a tree
is walked), within the last message as far as those lengths tell. Where texts first differ is then
left to whoever runs them: the local engine compares tokens, servers compare what they were sent.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from preread.batch.table import Rows
from preread.types import Message, Prefix

PART, END = b"\x01", b"\x00"
STEPS = (256, 1024, 4096, 16384)  # characters
BEGINNING = 4 * len(STEPS)  # bytes at the end of a place
KEPT = 4096  # prefixes remembered


class Keyed(NamedTuple):
    """A column per part of a block: 16 bytes each, but for the place."""

    digests: list[bytes]
    places: list[bytes]
    orders: list[bytes]
    prefixes: list[bytes]


class Keys:
    """Works out the keys of blocks of requests; what many share is worked out once."""

    def __init__(self) -> None:
        self._known: dict[Prefix, tuple[bytes, bytes]] = {}

    def of(self, rows: Rows, start: int) -> Keyed:
        """start: number of the first row; requests that may be answered differently each time are
        told apart by their number."""
        keyed = Keyed([], [], [], [])
        columns = zip(rows.orders, rows.prefixes, rows.texts, strict=True)
        for number, (order, prefix, text) in enumerate(columns, start):
            key, path = self._prefix(prefix)
            data = text.encode()
            own = b"" if order.repeatable else number.to_bytes(8, "big")
            digest = blake2b(order.key + key + own, digest_size=16)
            digest.update(data)
            keyed.digests.append(digest.digest())
            keyed.places.append(model_digest(order.model) + path + order.key[:8] + _steps(text))
            keyed.orders.append(order.key)
            keyed.prefixes.append(key)
        return keyed

    def _prefix(self, prefix: Prefix) -> tuple[bytes, bytes]:
        found = self._known.get(prefix)
        if found is None:
            if len(self._known) >= KEPT:
                self._known.clear()
            key = blake2b(prefix_json(prefix).encode(), digest_size=16)
            found = self._known[prefix] = key.digest(), _path(prefix)
        return found


def model_digest(model: str) -> bytes:
    """8 bytes."""
    return blake2b(model.encode(), digest_size=8).digest()


def prefix_json(prefix: Prefix) -> str:
    """Canonical."""
    turns = [[turn.role, turn.content] for turn in prefix.history]
    return json.dumps([prefix.system, turns], ensure_ascii=False)


def prefix_of(text: str) -> Prefix:
    """What `prefix_json` wrote."""
    system, turns = json.loads(text)
    return Prefix(system, tuple(Message(role, content) for role, content in turns))


def alike(one: str, two: str) -> int:
    """Length of the common beginning. os.path.commonprefix is the slow twin."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(two[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def _path(prefix: Prefix) -> bytes:
    parts = [f"system\0{prefix.system}", *(f"{t.role}\0{t.content}" for t in prefix.history)]
    digests = (blake2b(part.encode(), digest_size=8).digest() for part in parts)
    return b"".join(PART + digest for digest in digests) + END


def _steps(text: str) -> bytes:
    if len(text) < STEPS[0]:
        return bytes(BEGINNING)
    found, done, checksum = b"", 0, 0
    for step in STEPS:
        if step > len(text):
            break
        checksum = crc32(text[done:step].encode(), checksum)
        found += checksum.to_bytes(4, "big")
        done = step
    return found.ljust(BEGINNING, b"\0")
