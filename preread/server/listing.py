"""What a request may name: the model itself, then the contexts, which the model reads first."""

from __future__ import annotations

import logging
from typing import Any

from preread.server.desk import Desk

log = logging.getLogger("preread.server")


async def models(desk: Desk) -> list[dict[str, Any]]:
    """The objects of `GET /v1/models`; of a context with its version. Raises HomeError."""
    limit = desk.backend.info.limit
    fixed = {"object": "model", "owned_by": "preread", "max_model_len": limit}
    listed = [{"id": desk.name, "created": 0, **fixed}]
    for summary in await desk.shelf.listed():
        if summary.name == desk.name:
            log.warning("context %s has the model's name and cannot be asked", summary.name)
            continue
        context = {"version": summary.version, "tokens": summary.tokens, "shards": summary.shards}
        made = int(summary.created_at)
        listed.append({"id": summary.name, "created": made, **fixed, "context": context})
    return listed
