"""DeepSeek's: OpenAI's dialect with hits and misses of its own. A common beginning is kept once two
requests have shown that it is one, so the first two of a group miss."""

from __future__ import annotations

from typing import Any

from preread.backend import Generate, RequestBatch
from preread.providers import usage
from preread.providers.dialect import Traits
from preread.providers.openai import OpenAI
from preread.providers.usage import Counts

HOST = "https://api.deepseek.com"
UNIT = 64  # tokens
KEPT_S = 3600.0  # "hours to days"


class DeepSeek(OpenAI):
    """See preread.providers.dialect.Dialect."""

    name = "deepseek"

    def __init__(self, model: str, base: str = HOST) -> None:
        super().__init__(model, base, traits=Traits(UNIT, firsts=2, ttl_s=KEPT_S))
        self.server = "deepseek"

    def refuses(self, batch: RequestBatch) -> str:
        work = batch.work
        if isinstance(work, Generate) and work.schema is not None:
            return "it writes JSON but follows no schema"
        if isinstance(work, Generate) and work.sampling.seed is not None:
            return "it takes no seed"
        return super().refuses(batch)

    def counts(self, body: dict[str, Any]) -> Counts:
        return usage.deepseek(body.get("usage") or {})
