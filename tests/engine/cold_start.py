"""A new process: `cold_start.py MODEL PLACE` wants the same prefix as its siblings. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from preread.backend import Generate, RequestBatch
from preread.contexts.claims.files import FileClaims
from preread.contexts.rows import collect
from preread.engine.local import LocalBackend
from preread.models.load import load_model
from preread.store.tiers.disk import DiskTier
from preread.testing.questions import BOOK, QUESTIONS
from tests.engine.test_local import CONFIG, store_of


async def main(folder: str, place: Path) -> dict[str, object]:
    model = load_model(folder, dtype="float32", device="cpu")
    store = store_of(model, DiskTier(place / "kv"), always=True)
    backend = LocalBackend(model, store, CONFIG, claims=FileClaims(place / "claims"))
    built = await backend.build(BOOK)
    work = Generate(max_tokens=8, ignore_eos=True)
    rows = await collect(backend, RequestBatch(work, list(QUESTIONS), (BOOK,)))
    await backend.close()
    return {
        "prefix": built.tokens,
        "computed": built.computed_tokens,
        "tokens": [row.tokens for row in rows],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], Path(sys.argv[2])))))
