"""Claims in an object store: small objects, written only if nobody has written them since. They run
out by the machines' clocks, which may differ by less than a claim lasts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from math import inf
from uuid import uuid4

from preread.store.tiers.bucket import Bucket, Changed

AHEAD_S = 3600.0  # machines' clocks may differ by this much


class ObjectClaims:
    """See store/claims.py."""

    def __init__(self, bucket: Bucket, clock: Callable[[], float] = time.time) -> None:
        self._bucket, self._clock = bucket, clock
        self._owner = uuid4().hex

    def take(self, key: str, ttl_s: float) -> bool:
        now = self._clock()
        found = self._bucket.get(key)
        owner = _owner(found.data, now, now + ttl_s + AHEAD_S) if found is not None else ""
        if owner not in ("", self._owner):
            return False
        mine = {"owner": self._owner, "until": now + ttl_s, "nonce": uuid4().hex}
        try:
            self._bucket.swap(key, json.dumps(mine).encode(), found.tag if found else None)
        except Changed:
            return False
        return True

    def drop(self, key: str) -> None:
        found = self._bucket.get(key)
        if found is None or _owner(found.data, self._clock(), inf) != self._owner:
            return
        over = {"owner": "", "until": 0.0, "nonce": uuid4().hex}
        try:
            self._bucket.swap(key, json.dumps(over).encode(), found.tag)
        except Changed:
            return
        self._bucket.delete([key])  # whoever took it in between computes what another may, too


def _owner(data: memoryview, now: float, latest: float) -> str:
    """Whose it is; "" when it is free, has run out or says nothing legible, and when it lasts
    longer than any should: then it was taken by a clock that was ahead."""
    try:
        said = json.loads(bytes(data))
        return str(said["owner"]) if now < float(said["until"]) <= latest else ""
    except (ValueError, KeyError, TypeError):
        return ""
