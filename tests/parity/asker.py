"""A new process: `asker.py MODEL ROOT` asks over what is on disk. Prints one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from preread.backend import Generate, RequestBatch
from preread.contexts.rows import collect
from preread.engine.local import LocalBackend
from preread.models.load import load_model
from preread.store.tiers.disk import DiskTier
from preread.testing.questions import BOOK, QUESTIONS
from tests.parity.tools import CONFIG, store_of

WORK = Generate(max_tokens=8, ignore_eos=True, logprobs=True)


def ask(folder: str, root: Path) -> list[dict[str, object]]:
    model = load_model(folder, dtype="float32", device="cpu")
    backend = LocalBackend(model, store_of(model, DiskTier(root)), CONFIG)
    rows = asyncio.run(collect(backend, RequestBatch(WORK, list(QUESTIONS), (BOOK,))))
    asyncio.run(backend.close())
    return [
        {
            "tokens": row.tokens,
            "logprobs": row.logprobs,
            "cached": row.usage.cached_tokens,
            "computed": row.usage.computed_tokens,
            "load_ms": row.timing.load_ms,
        }
        for row in rows
    ]


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1], Path(sys.argv[2]))))
