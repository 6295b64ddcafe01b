"""Claims in an object store: small objects, written only if nobody has written them since. They run
out by the machines' clocks, which may differ by less than a claim lasts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from uuid import uuid4

from preread.store.tiers.bucket import Bucket, Changed


class ObjectClaims:
    """See store/claims.py."""

    def __init__(self, bucket: Bucket, clock: Callable[[], float] = time.time) -> None:
        self._bucket, self._clock = bucket, clock
        self._owner = uuid4().hex

    def take(self, key: str, ttl_s: float) -> bool:
        now = self._clock()
        found = self._bucket.get(key)
        if found is not None and _owner(found.data, now) not in ("", self._owner):
            return False
        mine = {"owner": self._owner, "until": now + ttl_s, "nonce": uuid4().hex}
        try:
            self._bucket.swap(key, json.dumps(mine).encode(), found.tag if found else None)
        except Changed:
            return False
        return True

    def drop(self, key: str) -> None:
        found = self._bucket.get(key)
        if found is None or _owner(found.data, self._clock()) != self._owner:
            return
        over = {"owner": "", "until": 0.0, "nonce": uuid4().hex}
        try:
            self._bucket.swap(key, json.dumps(over).encode(), found.tag)
        except Changed:
            return
        self._bucket.delete([key])  # whoever took it in between computes what another may, too


def _owner(data: memoryview, now: float) -> str:
    """Whose it is; "" when it is free, has run out or says nothing legible."""
    try:
        said = json.loads(bytes(data))
        return str(said["owner"]) if float(said["until"]) > now else ""
    except (ValueError, KeyError, TypeError):
        return ""
