"""Claims on a Redis or Valkey: a key that runs out."""

from __future__ import annotations

from uuid import uuid4

from preread.contexts.catalog.redis_client import Client

TAKE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
DROP = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end"


class RedisClaims:
    """See store/claims.py."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._owner = uuid4().hex

    def take(self, key: str, ttl_s: float) -> bool:
        return bool(self._client.run(TAKE, [_name(key)], [self._owner, int(1000 * ttl_s)]))

    def drop(self, key: str) -> None:
        self._client.run(DROP, [_name(key)], [self._owner])


def _name(key: str) -> str:
    return f"{{preread}}:claim:{key}"
