"""The whole local path on CUDA: cached, loaded from disk, batched and recomputed agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import preread
from preread.app.engine import Engine
from preread.backend import Choose, Generate, Ragged, RequestBatch
from preread.contexts.rows import Row, collect
from preread.testing.models import write_tiny_model
from preread.types import Prefix

pytestmark = pytest.mark.gpu
FACTS = "\n".join(
    f"Room {n} is on floor {n % 7}; its key hangs on hook {n * 3}." for n in range(40)
)
BOOK = Prefix(f"Answer from the documents below.\n\n[house.md]\n{FACTS}")
OTHER = Prefix(f"Answer in one word.\n\n[keys.md]\n{FACTS[::-1]}")
QUESTIONS = [f"Which hook has the key of room {n}?" for n in range(24)]


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    folder = write_tiny_model(tmp_path / "m", request.param, head_dim=64, layers=3)
    with preread.open(str(folder), device="cuda", dtype="float32", home=tmp_path / "h") as made:
        yield made


def ask(engine: Engine, **fields: object) -> list[Row]:
    work = Generate(max_tokens=24, ignore_eos=True, logprobs=True)
    prefix_of = np.arange(len(QUESTIONS), dtype=np.int32) % 2
    batch = RequestBatch(work, QUESTIONS, (BOOK, OTHER), prefix_of, **fields)  # type: ignore[arg-type]
    return engine.run(collect(engine.backend, batch))


def same(ours: list[Row], theirs: list[Row]) -> None:
    """Equal tokens up to where rounding may decide, near-equal log-probabilities until then."""
    for a, b in zip(ours, theirs, strict=True):
        assert not a.error and not b.error
        first = next(
            (i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=True)) if x != y), 24
        )
        np.testing.assert_allclose(a.logprobs[:first], b.logprobs[:first], atol=2e-4)
    agree = sum(a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True))
    assert agree >= len(ours) - 1


def test_cached_equals_recomputed_with_mixed_contexts(engine: Engine) -> None:
    assert engine.info.device.startswith("cuda")
    engine.run(engine.backend.build(BOOK))
    warm, cold = ask(engine), ask(engine, reuse=False)
    assert all(row.usage.cached_tokens == 0 for row in cold)
    assert sum(row.usage.cached_tokens for row in warm) > sum(r.usage.computed_tokens for r in warm)
    same(warm, cold)


def test_a_new_engine_loads_what_another_stored(engine: Engine, tmp_path: Path) -> None:
    built = engine.run(engine.backend.build(BOOK))
    before = ask(engine)
    with preread.open(
        str(tmp_path / "m"), device="cuda", dtype="float32", home=tmp_path / "h"
    ) as other:
        again = other.run(other.backend.build(BOOK))
        assert again.loaded_tokens == built.tokens and again.computed_tokens == 0
        same(ask(other), before)


def test_choose_and_shared_token_prompts(engine: Engine) -> None:
    work = Choose(("yes", "no", "not at all"))
    batch = RequestBatch(work, QUESTIONS[:4], (BOOK,))
    cold = RequestBatch(work, QUESTIONS[:4], (BOOK,), reuse=False)
    warm = engine.run(collect(engine.backend, batch))
    for a, b in zip(warm, engine.run(collect(engine.backend, cold)), strict=True):
        np.testing.assert_allclose(a.label_probs, b.label_probs, atol=1e-4)
    rng = np.random.default_rng(0)
    head = rng.integers(0, 256, 300)
    rows = [np.concatenate((head, rng.integers(0, 256, 20))).astype(np.int32) for _ in range(16)]
    ragged = Ragged(np.concatenate(rows), np.arange(17, dtype=np.int64) * 320)
    generate = Generate(max_tokens=8, ignore_eos=True, logprobs=True)
    shared = engine.run(collect(engine.backend, RequestBatch(generate, ragged, raw=True)))
    alone = engine.run(
        collect(engine.backend, RequestBatch(generate, ragged, raw=True, reuse=False))
    )
    assert sum(row.usage.cached_tokens for row in shared) >= 15 * 300
    same_logprobs = [
        np.abs(np.array(a.logprobs[:1]) - b.logprobs[:1]).max()
        for a, b in zip(shared, alone, strict=True)
    ]
    assert max(same_logprobs) < 2e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_and_stays_near(dtype: str, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", "qwen3", head_dim=64)
    with (
        preread.open(str(folder), device="cuda", dtype=dtype, home=tmp_path / "h") as half,
        preread.open(str(folder), device="cpu", dtype="float32", home=tmp_path / "g") as full,
    ):
        work = Generate(max_tokens=1, ignore_eos=True, logprobs=True)
        batch = RequestBatch(work, QUESTIONS, (BOOK,))
        ours = half.run(collect(half.backend, batch))
        theirs = full.run(collect(full.backend, batch))
        gaps = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(ours, theirs, strict=True)]
        assert float(np.mean(gaps)) < 0.05
