"""KV of transformers models in the store: saved, loaded elsewhere, never mixed, never believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preread.backend import RequestBatch
from preread.config import EngineSection
from preread.contexts.rows import collect
from preread.engine.local import LocalBackend
from preread.foreign.build import Builder
from preread.foreign.load import ForeignModel, load_foreign
from preread.models.load import load_model
from preread.store.keys import Geometry, fingerprint
from preread.store.store import Store
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.testing.faulty import FaultyTier, Trouble, often
from preread.testing.models import write_tiny_model
from preread.testing.questions import BOOK, QUESTIONS, SHORT
from preread.types import Prefix
from tests.foreign import asker
from tests.foreign.conftest import Load
from tests.foreign.made import KEPT, RARE
from tests.foreign.tools import CONFIG, backend_of, stores_of

ROOT = Path(__file__).parents[2]


async def truth(model: ForeignModel, prefix: Prefix = BOOK) -> list[list[int]]:
    """Without a store, without reuse."""
    backend = backend_of(model)
    batch = RequestBatch(SHORT, list(QUESTIONS), (prefix,), reuse=False)
    rows = await collect(backend, batch)
    await backend.close()
    return [row.tokens for row in rows]


@pytest.mark.parametrize("family", KEPT + RARE)
async def test_another_backend_loads_what_one_computed(load: Load, family: str):
    model, tier = load(family), MemoryTier()
    first = backend_of(model, tier)
    built = await first.build(BOOK)
    here = await collect(first, RequestBatch(asker.WORK, list(QUESTIONS), (BOOK,)))
    await first.close()
    second = backend_of(model, tier)
    there = await collect(second, RequestBatch(asker.WORK, list(QUESTIONS), (BOOK,)))
    again = await second.build(BOOK)
    await second.close()
    assert built.stored and built.chunk_keys == again.chunk_keys
    assert again.computed_tokens == 0
    assert there[0].usage.cached_tokens >= built.tokens - 4 and there[0].timing.load_ms > 0
    for a, b in zip(here, there, strict=True):
        assert (a.tokens, a.logprobs) == (b.tokens, b.logprobs)  # bit for bit
    assert [row.tokens for row in there] == await truth(model)


@pytest.mark.parametrize("family", ["gemma3", "mixtral"])
async def test_saved_here_and_loaded_in_a_new_process(load: Load, family: str, tmp_path: Path):
    model = load(family)
    backend = backend_of(model, DiskTier(tmp_path))
    built = await backend.build(BOOK)
    here = await collect(backend, RequestBatch(asker.WORK, list(QUESTIONS), (BOOK,)))
    await backend.close()
    done = subprocess.run(
        [sys.executable, "-m", "tests.foreign.asker", str(model.folder), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert [row["tokens"] for row in there] == [row.tokens for row in here]
    for a, b in zip(here, there, strict=True):
        assert b["logprobs"] == pytest.approx(a.logprobs, abs=1e-4)
    assert built.stored and there[0]["load_ms"] > 0
    assert there[0]["cached"] >= built.tokens - 4


@pytest.mark.parametrize("family", ["mistral", "deepseek"])
async def test_a_longer_version_loads_the_common_part(load: Load, family: str):
    tier, model = MemoryTier(), load(family)
    first = backend_of(model, tier)
    await first.build(BOOK)
    await first.close()
    longer = Prefix(BOOK.system + "\nThe cellar has no number.")
    second = backend_of(model, tier)
    built = await second.build(longer)
    rows = await collect(second, RequestBatch(SHORT, list(QUESTIONS), (longer,)))
    await second.close()
    assert built.loaded_tokens > built.tokens // 2
    assert built.loaded_tokens + built.computed_tokens == built.tokens
    assert [row.tokens for row in rows] == await truth(model, longer)


async def test_memory_and_a_tier_each_have_a_part(load: Load):
    """The tier goes on in the middle of a chunk of which memory has the first tokens."""
    tier, model = MemoryTier(), load("gemma3")
    text = np.random.default_rng(0).integers(0, 256, 300).astype(np.int32)
    first = backend_of(model, tier)
    first.prefill(text)
    await first.close()
    second = backend_of(model, tier)
    second.prefill(np.concatenate((text[:90], text[:5])), store=False)
    built = second.prefill(text)
    assert (built.reused_tokens, built.loaded_tokens) == (300, 210)
    again = backend_of(model)
    again.prefill(text)
    kept, fresh = (b._builder._memory.longest(text, 0) for b in (second, again))
    for (k, v), (other_k, other_v) in zip(kept.layers, fresh.layers, strict=True):
        assert np.allclose(k, other_k, atol=1e-4) and np.allclose(v, other_v, atol=1e-4)
    await second.close()
    await again.close()


async def test_a_killed_build_is_taken_up_where_it_was(load: Load):
    tier, model = MemoryTier(), load("mistral")
    config = replace(CONFIG, save_every_s=0.0, prefill_chunk=128)
    first = backend_of(model, tier, config=config)

    def die(ready: int, of: int) -> None:
        if ready > of / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await first.build(BOOK, progress=die)
    await first.close()
    second = backend_of(model, tier, config=config)
    built = await second.build(BOOK)
    rows = await collect(second, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
    await second.close()
    assert built.tokens / 4 < built.loaded_tokens < built.tokens
    assert built.loaded_tokens + built.computed_tokens == built.tokens
    assert [row.tokens for row in rows] == await truth(model)


async def test_the_two_regimes_of_longrope_share_no_chunk(load: Load):
    tier, model = MemoryTier(), load("phi3")
    text = np.random.default_rng(0).integers(0, 256, 400).astype(np.int32)
    first = backend_of(model, tier)
    long = first.prefill(text)
    await first.close()
    second = backend_of(model, tier)
    short = second.prefill(text[:280])
    assert short.loaded_tokens == 0 and not {*long.chunk_keys} & {*short.chunk_keys}
    assert second.prefill(text[:350]).loaded_tokens == 320  # whole chunks of 64
    await second.close()


async def test_the_two_backends_share_no_chunk(tmp_path: Path):
    """One model that both compute, one tier: neither ever finds what the other wrote."""
    folder, tier = str(write_tiny_model(tmp_path / "m", "qwen3")), MemoryTier()
    foreign = load_foreign(folder, dtype="float32", device="cpu")
    native = load_model(folder, dtype="float32", device="cpu")
    sizes = (native.config.layers, native.config.kv_heads, native.config.head_dim)
    assert foreign.net.layout.geometry(64, 40_000) == Geometry(*sizes, "float32", 64, 40_000)
    mine = fingerprint(native.fingerprint_parts)
    store = Store([tier], Geometry(*sizes, "float32", 64, 40_000), mine)
    first = LocalBackend(native, store, EngineSection(prefix_memory_mb=16, suffix_memory_mb=4))
    theirs = await first.build(BOOK)
    want = [r.tokens for r in await collect(first, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))]
    await first.close()
    second = backend_of(foreign, tier)
    built = await second.build(BOOK)
    rows = await collect(second, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
    await second.close()
    assert theirs.stored and built.loaded_tokens == 0
    assert not {*theirs.chunk_keys} & {*built.chunk_keys}
    assert [r.tokens for r in rows] == want  # and yet the two agree


async def test_other_weights_find_nothing(load: Load, tmp_path: Path):
    from tests.foreign.made import write_foreign_model

    tier = MemoryTier()
    first = backend_of(load("mistral"), tier)
    await first.build(BOOK)
    await first.close()
    folder = write_foreign_model(tmp_path / "other", "mistral", seed=1)
    other = backend_of(load_foreign(str(folder), dtype="float32", device="cpu"), tier)
    assert (await other.build(BOOK)).loaded_tokens == 0
    await other.close()


CONTEXTS = [BOOK, Prefix(BOOK.system[:700]), Prefix(BOOK.system[:700] + "\nAnd no cellar.")]


@pytest.mark.parametrize("family", ["gemma3", "deepseek"])
async def test_a_tier_that_fails_in_every_way_never_gives_a_wrong_answer(load: Load, family: str):
    model = load(family)
    want = [await truth(model, prefix) for prefix in CONTEXTS]
    tier, happened = MemoryTier(), 0
    for seed in range(6):
        faulty = FaultyTier(tier, often(seed, 0.3, tuple(Trouble)), sleep=lambda _: None)
        backend = backend_of(model, faulty)
        for prefix, tokens in zip(CONTEXTS, want, strict=True):
            built = await backend.build(prefix)
            assert built.reused_tokens + built.computed_tokens == built.tokens
            rows = await collect(backend, RequestBatch(SHORT, list(QUESTIONS), (prefix,)))
            assert [row.tokens for row in rows] == tokens
        await backend.close()
        happened += len(faulty.happened)
    assert happened > 0


async def test_a_lying_store_is_what_these_tests_would_catch(load: Load, monkeypatch):
    """A chunk that passes every check but holds other KV gives another answer."""
    tier, model = MemoryTier(), load("gemma3")
    right = Builder._save

    def wrong(self, tokens, kv, regime):
        bent = replace(kv, layers=tuple((k, v * 3) for k, v in kv.layers))
        return right(self, tokens, bent, regime)

    monkeypatch.setattr(Builder, "_save", wrong)
    first = backend_of(model, tier)
    await first.build(BOOK)
    await first.close()
    second = backend_of(model, tier)
    rows = await collect(second, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
    await second.close()
    assert [row.tokens for row in rows] != await truth(model)


@pytest.mark.parametrize("family", ["qwen3_next", "mamba"])
async def test_what_cannot_be_cut_is_read_again(load: Load, family: str):
    model, tier = load(family), MemoryTier()
    assert stores_of(model, tier) == []
    backend = backend_of(model, tier)
    first, second = await backend.build(BOOK), await backend.build(BOOK)
    for built in (first, second):
        assert (built.reused_tokens, built.computed_tokens) == (0, built.tokens)
        assert (built.stored, built.chunk_keys, built.kv_bytes) == (False, (), 0)
    rows = await collect(backend, RequestBatch(SHORT, list(QUESTIONS), (BOOK,), keep=True))
    await backend.close()
    assert all(row.usage.cached_tokens == 0 for row in rows)
    assert [row.tokens for row in rows] == await truth(model)
