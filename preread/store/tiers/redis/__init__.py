"""Chunks in Redis or Valkey: one server, several (two copies each), or a cluster.

streams, wire (requests and replies on one socket) < dial (a connection, logged in) < node (one
server: idle connections, a breaker) < placement, cluster (which servers a key lives on) < asking,
reading, holding (many keys, many values, all names) < tier < opening.

Everything goes through these few lines of RESP and no client library: values land in the reader's
own buffers, and one deadline, one breaker and one login hold for whatever is asked.
"""

from __future__ import annotations

from preread.store.tiers.redis.opening import open_redis

__all__ = ["open_redis"]
