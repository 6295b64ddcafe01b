"""Law 1 and 2 across processes: saved and loaded elsewhere, killed at any point, over tiers that
fail in every way: the answer is always that of recomputing everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from preread.backend import RequestBatch
from preread.contexts.rows import collect
from preread.engine.build import Builder
from preread.engine.local import LocalBackend
from preread.models.load import LoadedModel, load_model
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.testing.faulty import FaultyTier, Trouble, often
from preread.testing.questions import BOOK, QUESTIONS, SHORT
from preread.types import Prefix
from tests.parity import asker
from tests.parity.tools import CONFIG, store_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> LoadedModel:
    return load_model(str(folders["qwen3"]), dtype="float32", device="cpu")


def script(name: str, *args: str) -> object:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.parity.{name}", *args],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def truth(model: LoadedModel, prefix: Prefix = BOOK) -> list[list[int]]:
    """Without a store, without reuse."""
    backend = LocalBackend(model, None, CONFIG)
    batch = RequestBatch(SHORT, list(QUESTIONS), (prefix,), reuse=False)
    rows = await collect(backend, batch)
    await backend.close()
    return [row.tokens for row in rows]


async def test_saved_here_and_loaded_in_a_new_process(model, tmp_path):
    backend = LocalBackend(model, store_of(model, DiskTier(tmp_path)), CONFIG)
    built = await backend.build(BOOK)
    here = await collect(backend, RequestBatch(asker.WORK, list(QUESTIONS), (BOOK,)))
    await backend.close()
    there = script("asker", str(model.folder), str(tmp_path))
    assert [row["tokens"] for row in there] == [row.tokens for row in here] == await truth(model)
    for a, b in zip(here, there, strict=True):
        assert b["logprobs"] == pytest.approx(a.logprobs, abs=1e-4)
    assert built.stored and there[0]["load_ms"] > 0
    assert there[0]["cached"] >= built.tokens - 64


@pytest.mark.slow
def test_killed_at_fifty_points_of_a_build(model, tmp_path):
    result = script("dying_builder", str(model.folder), str(tmp_path), "50")
    assert result["calls"] > 100
    assert len(result["answers"]) == 50
    for one in result["answers"]:
        assert one["died"] == signal.SIGKILL, one
        assert one["lived"] == 0, one
        assert one["answer"] == result["truth"], one


CONTEXTS = [BOOK, Prefix(BOOK.system[:700]), Prefix(BOOK.system[:700] + "\nAnd no cellar.")]


@pytest.mark.parametrize("kind", [*Trouble, None], ids=str)
async def test_a_tier_that_fails_in_every_way_never_gives_a_wrong_answer(model, kind):
    kinds = tuple(Trouble) if kind is None else (kind,)
    want = [await truth(model, prefix) for prefix in CONTEXTS]
    tier, happened = MemoryTier(), 0
    for seed in range(4):
        faulty = FaultyTier(tier, often(seed, 0.3, kinds), sleep=lambda _: None)
        backend = LocalBackend(model, store_of(model, faulty), CONFIG)
        for prefix, tokens in zip(CONTEXTS, want, strict=True):
            built = await backend.build(prefix)
            assert built.reused_tokens + built.computed_tokens == built.tokens
            rows = await collect(backend, RequestBatch(SHORT, list(QUESTIONS), (prefix,)))
            assert [row.tokens for row in rows] == tokens
        await backend.close()
        happened += len(faulty.happened)
    assert happened > 0


async def test_a_lying_store_is_what_the_parity_suite_would_catch(model, monkeypatch):
    """A chunk that passes every check but holds other KV gives another answer: the tests above can
    fail."""
    tier = MemoryTier()
    right = Builder._read
    monkeypatch.setattr(Builder, "_read", lambda self, *box: right(self, *box) * 3)
    first = LocalBackend(model, store_of(model, tier), CONFIG)
    await first.build(BOOK)
    await first.close()
    second = LocalBackend(model, store_of(model, tier), CONFIG)
    rows = await collect(second, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
    await second.close()
    assert [row.tokens for row in rows] != await truth(model)
