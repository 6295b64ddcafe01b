"""Several devices that behave as one: real processes, over gloo on this CPU."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from preread.engine.engine import Engine
from preread.engine.group.open import Wanted, open_group
from preread.engine.local import LocalBackend
from preread.engine.thread import EngineThread
from preread.errors import ConfigError, EngineError, GroupLost
from preread.kernels.kv import rounded
from preread.models.load import load_model
from preread.testing.models import write_tiny_model
from preread.tokens.batch import ChooseSpec, LikelihoodSpec
from preread.tokens.labels import label_trie
from tests.engine.helpers import SMALL, batch, drain, greedy
from tests.engine.test_local import CONFIG, store_of

SIZE = 3  # of four KV heads: not all ranks have as many


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("group") / "tiny"
    return str(write_tiny_model(place, "qwen3", heads=8, kv_heads=4))


@pytest.fixture(scope="module")
def one(folder):
    return load_model(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def group(folder):
    made = open_group(Wanted(folder, SIZE, dtype="float32", device="cpu", threads=1))
    yield made
    made[1].close()


def engines(one, group, **options):
    loaded, parts = group
    return Engine(one.decoder, SMALL, **options), Engine(
        loaded.decoder, SMALL, parts=parts, **options
    )


def rows(n: int) -> list[list[int]]:
    return [np.random.default_rng(i).integers(1, 250, 3 + i % 9).tolist() for i in range(n)]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_group_answers_as_one_device(one, group, ahead):
    prefixes = [list(range(2, 90)), list(range(30, 70))]
    made = []
    for engine in engines(one, group, ahead=ahead):
        jobs = [
            engine.submit(batch(rows(15), greedy(9), prefixes=prefixes, prefix_of=[0, 1, 0] * 5)),
            engine.submit(batch(rows(4), greedy(20, logprobs=True))),
            engine.submit(batch(rows(6), LikelihoodSpec(np.full(6, 2, np.int32)))),
            engine.submit(
                batch(rows(5), ChooseSpec(label_trie([[7, 8], [9]])), prefixes=prefixes[:1])
            ),
        ]
        made.append(drain(engine, *jobs))
    for alone, together in zip(*made, strict=True):
        assert alone.tokens == together.tokens and alone.finish == together.finish
        assert alone.usage == together.usage
        for row, scores in alone.scores.items():
            np.testing.assert_allclose(scores, together.scores[row], atol=1e-4)
        for row, logprobs in alone.logprobs.items():
            np.testing.assert_allclose(logprobs, together.logprobs[row], atol=1e-4)


def test_a_turn_that_is_kept_is_continued(one, group):
    said = []
    for engine in engines(one, group):
        own = rows(1)
        first = drain(engine, engine.submit(batch(own, greedy(8), keep=True)))[0].tokens[0]
        longer = [own[0] + first + [5, 6]]
        (after,) = drain(engine, engine.submit(batch(longer, greedy(8))))
        said.append((first, after.tokens[0], after.usage[0]))
    assert said[0] == said[1]


def test_what_is_written_to_a_group_is_read_from_it(group):
    loaded, parts = group
    engine = Engine(loaded.decoder, SMALL, parts=parts)
    config, arena = loaded.config, engine.arena
    runs = [(3, 7), (40, 5)]
    kv = torch.randn(config.layers, 2, config.kv_heads, 12, config.head_dim)
    arena.write(runs, kv)
    assert torch.equal(arena.read(runs), kv)
    for cell in [(0, 1, 0, 4), (1, 2, 1, 3), (0, 2, 3, 4), (0, 2, 0, 1), (1, 2, 2, 2)]:
        i, j, g, h = cell
        assert torch.equal(arena.read(runs, cell), kv[i:j, :, g:h])
    arena.write(runs[:1], -kv[1:2, :, 1:4, :7], (1, 2, 1, 4))
    kv[1:2, :, 1:4, :7] *= -1
    assert torch.equal(arena.read(runs), kv)
    assert arena.token_bytes == 2 * 4 * config.layers * config.kv_heads * config.head_dim


def test_every_rank_keeps_kv_in_the_precision_of_the_first(group):
    loaded, parts = group
    engine = Engine(loaded.decoder, SMALL, parts=parts, kv_precision="int8")
    config, arena = loaded.config, engine.arena
    kv = torch.randn(config.layers, 2, config.kv_heads, 12, config.head_dim)
    arena.write([(3, 12)], kv)
    assert torch.equal(arena.read([(3, 12)]), rounded(kv, "int8"))
    assert arena.token_bytes == 2 * config.layers * config.kv_heads * (config.head_dim + 4)


async def test_one_device_and_a_group_read_each_other(folder, one):
    """A context that either has built is loaded by the other: what is stored names no rank."""
    tokens = np.arange(1, 200, dtype=np.int32)
    loaded, parts = open_group(Wanted(folder, 2, dtype="float32", device="cpu", threads=1))
    store = store_of(one, always=True)  # what pays is not the question
    backends = [LocalBackend(one, store, CONFIG), LocalBackend(loaded, store, CONFIG, parts=parts)]
    try:
        assert backends[0].info.fingerprint == backends[1].info.fingerprint
        assert backends[0].info.kv_bytes_per_token == backends[1].info.kv_bytes_per_token
        first, second = (backend.prefill(tokens) for backend in backends)
        assert (first.computed_tokens, second.loaded_tokens) == (199, 199)
        other = tokens[::-1].copy()
        second, first = (backend.prefill(other) for backend in backends[::-1])
        assert (second.computed_tokens, first.loaded_tokens) == (199, 199)
    finally:
        for backend in backends:
            await backend.close()


def test_a_rank_that_is_gone_ends_the_engine(folder):
    loaded, parts = open_group(Wanted(folder, 2, dtype="float32", device="cpu", threads=1))
    try:
        engine = Engine(loaded.decoder, SMALL, parts=parts)
        drain(engine, engine.submit(batch(rows(2), greedy(3))))
        thread = EngineThread(engine)
        parts._followers._processes[0].kill()
        told: list[object] = []
        thread.call(lambda e: thread.listen(e, batch(rows(2), greedy(3)), told.append))
        for _ in range(600):
            if told:
                break
            time.sleep(0.1)
        assert isinstance(told[0], GroupLost) and "Open the engine again" in str(told[0])
        with pytest.raises(GroupLost):
            thread.call(lambda e: e)
        thread.stop()
    finally:
        parts.close()


def test_what_cannot_begin_says_why(folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="4 KV heads"):
        open_group(Wanted(folder, 5, device="cpu"))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(EngineError, match="its process ended"):
        open_group(Wanted(folder, 2, device="cpu"))
