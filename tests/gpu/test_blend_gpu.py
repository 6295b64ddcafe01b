"""Prefixes put together from parts, on CUDA: with a share of 1 they are exact, and with less they
are what a CPU makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import preread
from preread.app.engine import Engine
from preread.backend import Generate, RequestBatch
from preread.blends import Blend
from preread.contexts.rows import Row, collect
from preread.testing.models import write_tiny_model
from preread.types import Prefix

pytestmark = pytest.mark.gpu
HEAD = "Answer from the documents below.\n\n"
TEXTS = [
    f"[{name}.md]\n" + "\n".join(f"{name} {n}: floor {n % 7}, hook {n * k}." for n in range(30))
    for k, name in enumerate(("Room", "Shed", "Yard"), 3)
]
QUESTIONS = [f"Which hook has the key of shed {n}?" for n in range(8)]


def blended(share: float, by: str) -> Prefix:
    parts = tuple(HEAD + text for text in TEXTS)
    return Prefix(HEAD + "\n\n".join(TEXTS), (), Blend(parts, share, by))  # type: ignore[arg-type]


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "m", "qwen3", head_dim=64, layers=3)


@pytest.fixture
def engine(folder: Path, dtype: str, tmp_path: Path) -> Iterator[Engine]:
    with preread.open(str(folder), device="cuda", dtype=dtype, home=tmp_path / "h") as made:
        yield made


def ask(engine: Engine, prefix: Prefix, **fields: object) -> list[Row]:
    work = Generate(max_tokens=1, ignore_eos=True, logprobs=True)
    batch = RequestBatch(work, QUESTIONS, (prefix,), **fields)  # type: ignore[arg-type]
    return engine.run(collect(engine.backend, batch))


def logprobs(rows: list[Row]) -> np.ndarray:
    assert not any(row.error for row in rows)
    return np.array([row.logprobs[0] for row in rows])


@pytest.mark.parametrize("by", ["first", "deviation"])
def test_all_computed_again_is_exact(engine: Engine, dtype: str, by: str) -> None:
    prefix = blended(1.0, by)
    want = logprobs(ask(engine, replace(prefix, blend=None), reuse=False))
    got = logprobs(ask(engine, prefix))
    np.testing.assert_allclose(got, want, atol=2e-3 if dtype == "float32" else 0.25)
    again = ask(engine, prefix)
    assert all(row.usage.computed_tokens < 100 for row in again)
    exact = logprobs(ask(engine, replace(prefix, blend=None)))
    np.testing.assert_allclose(exact, want, atol=2e-3 if dtype == "float32" else 0.25)


@pytest.mark.parametrize("by", ["first", "deviation"])
def test_it_is_what_a_cpu_makes_of_it(folder: Path, tmp_path: Path, by: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        home = tmp_path / device
        with preread.open(str(folder), device=device, dtype="float32", home=home) as engine:
            found.append(logprobs(ask(engine, blended(0.2, by))))
    np.testing.assert_allclose(*found, atol=2e-3)
