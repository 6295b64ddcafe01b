"""What a simulated server has read: a prefix cache in blocks, with a shortest length, a time to
live and, as at DeepSeek, a number of requests before a common beginning is kept."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(slots=True)
class _Block:
    seen: int = 0
    used: float = 0.0


class PrefixCache:
    """Digests of beginnings, a block at a time. Times in seconds, given by the caller."""

    def __init__(self, block: int, least: int, ttl_s: float, firsts: int = 1) -> None:
        """block, least: tokens; ttl_s 0: for ever; firsts: requests with a beginning in common
        after which it is kept."""
        self.block, self.least, self.ttl_s, self.firsts = block, least, ttl_s, firsts
        self._blocks: dict[bytes, _Block] = {}

    def known(self, ids: Sequence[int], now: float, salt: str = "") -> int:
        """Tokens of the longest beginning that is still remembered."""
        hit = 0
        for n, digest in enumerate(self._chain(ids, salt), 1):
            block = self._blocks.get(digest)
            if block is None or (self.ttl_s and now - block.used > self.ttl_s):
                break
            if block.seen < self.firsts:
                break
            hit = n * self.block
        return hit if hit >= self.least else 0

    def learn(self, ids: Sequence[int], now: float, salt: str = "") -> None:
        """A request with this prompt was answered."""
        for digest in self._chain(ids, salt):
            block = self._blocks.setdefault(digest, _Block())
            if self.ttl_s and now - block.used > self.ttl_s:
                block.seen = 0
            block.seen += 1
            block.used = now

    def _chain(self, ids: Sequence[int], salt: str) -> Iterator[bytes]:
        digest, data = blake2b(salt.encode(), digest_size=16), array("i", ids)
        for end in range(self.block, len(ids) + 1, self.block):
            digest.update(data[end - self.block : end].tobytes())
            yield digest.digest()
