"""Models that transformers computes, on CUDA: law 1, and KV that goes to the host and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from preread.backend import RequestBatch
from preread.contexts.rows import collect
from preread.foreign.load import load_foreign
from preread.foreign.parity import parity
from preread.store.tiers.memory import MemoryTier
from preread.testing.questions import BOOK, QUESTIONS, SHORT
from tests.foreign.made import write_foreign_model
from tests.foreign.tools import backend_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["mistral", "gemma3", "mixtral", "phi3", "deepseek"])
def test_law_1(tmp_path: Path, family: str, dtype: str):
    folder = write_foreign_model(tmp_path / family, family)
    report = parity(load_foreign(str(folder), dtype=dtype, device="cuda"))
    print(report)
    assert report.ok, report


async def test_stored_and_loaded(tmp_path: Path):
    folder, tier = write_foreign_model(tmp_path / "m", "gemma3"), MemoryTier()
    model = load_foreign(str(folder), dtype="float32", device="cuda")
    first = backend_of(model, tier)
    await first.build(BOOK)
    want = await collect(first, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
    await first.close()
    second = backend_of(model, tier)
    rows = await collect(second, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
    await second.close()
    assert rows[0].timing.load_ms > 0
    assert [row.tokens for row in rows] == [row.tokens for row in want]
