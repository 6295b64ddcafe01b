"""Law 1 where a prefix is computed from its front and loaded from its end: whatever the tier does,
wherever they meet, the answer is that of recomputing everything."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from preread.backend import LogLikelihood, Ragged, RequestBatch
from preread.contexts.rows import collect
from preread.engine.group.open import Wanted, open_group
from preread.engine.local import LocalBackend
from preread.models.load import LoadedModel, load_model
from preread.store.codec import codec_of
from preread.store.keys import Geometry, fingerprint
from preread.store.loading import Found
from preread.store.policy import Choice
from preread.store.rates import Rates
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers.base import Tier
from preread.store.tiers.memory import MemoryTier
from preread.testing.faulty import FaultyTier, Plan, Trouble, often
from preread.testing.questions import BOOK, QUESTIONS, SHORT
from preread.types import Built, Prefix
from tests.engine.helpers import Gated
from tests.parity.test_processes import truth
from tests.parity.tools import CONFIG

SEAL = Keyring.parse(sha256(b"a test").hexdigest(), "a test")
FORK = Prefix(BOOK.system[: len(BOOK.system) // 2] + "\nRoom 4 is closed.")
HANG = "hang"  # for ever, from some value on


class Both(Store):
    """Chooses both at once whatever it costs."""

    def choose(self, found: Found, start: int = 0, *, both: bool = False) -> Choice:
        upto = found.tokens
        if not both or upto <= start:
            return super().choose(found, start, both=both)
        tiers = frozenset(tier.name for tier in found.places.values())
        return Choice(upto, 0.5e-3 * upto, 1e-3 * upto, meets=(start + upto) // 2, tiers=tiers)


def store(model: LoadedModel, tiers: list[Tier], kind: type[Store] = Both, **options) -> Store:
    shape, rates = model.config, Rates()
    for n in (256, 1024):
        rates.computed(0, n, n * 1e-3)
    geometry = Geometry(shape.layers, shape.kv_heads, shape.head_dim, model.dtype, 64, 40_000)
    identity = fingerprint(model.fingerprint_parts)
    return kind(tiers, geometry, identity, rates=rates, **options)


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> LoadedModel:
    return load_model(str(folders["qwen3"]), dtype="float32", device="cpu")


@dataclass
class Stage:
    """A tier that holds the book, and a model whose steps wait until the tier hangs."""

    model: LoadedModel
    tier: MemoryTier
    values: int  # of the book
    gate: Gated
    over: threading.Event
    faulty: FaultyTier | None = None

    def backend(self, plan: Plan, **options) -> LocalBackend:
        """On a tier to which that happens."""

        def hang(seconds: float) -> None:
            self.gate.open()
            self.over.wait(60)

        self.faulty = tier = FaultyTier(self.tier, plan, sleep=hang)
        gated = replace(self.model, decoder=self.gate)
        return LocalBackend(gated, store(self.model, [tier], **options), CONFIG)


async def staged(model: LoadedModel, **options) -> Stage:
    tier = MemoryTier(name="far")
    first = LocalBackend(model, store(model, [tier], Store, always=True, **options), CONFIG)
    built = await first.build(BOOK)
    await first.close()
    assert built.stored and built.computed_tokens == built.tokens
    gate = Gated(model.decoder)
    return Stage(model, tier, len(built.chunk_keys), gate, threading.Event())


@pytest.fixture
def stages() -> Iterator[list[Stage]]:
    made: list[Stage] = []
    yield made
    for stage in made:
        stage.over.set()


def reads(troubles: dict[int, Trouble], hangs: int) -> Plan:
    """By the number of the value that is read; the tier hangs from one on."""

    def plan(method: str, n: int) -> Trouble | None:
        if method != "read":
            return None
        return Trouble.DELAY if n >= hangs else troubles.get(n)

    return plan


async def answered(backend: LocalBackend) -> tuple[Built, list[list[int]]]:
    built = await backend.build(BOOK)
    rows = await collect(backend, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
    return built, [row.tokens for row in rows]


def counted(built: Built) -> None:
    """Every token once, in one way or the other; and said."""
    came = built.brought
    assert built.loaded_tokens == came.tokens == sum(row.tokens for row in came.served)
    assert built.loaded_tokens + built.computed_tokens == built.tokens
    assert 0 < came.computed <= built.computed_tokens
    assert came.predicted_ms > 0 and came.to_json()["computed_meanwhile"] == came.computed


@pytest.mark.parametrize("keyring", [None, SEAL], ids=["plain", "sealed"])
@pytest.mark.parametrize("hangs", [0.1, 0.4, 0.7])
async def test_the_engine_computes_what_a_tier_that_hangs_does_not_give(
    model, stages, hangs, keyring
):
    stage = await staged(model, keyring=keyring)
    stages.append(stage)
    values = int(stage.values * hangs)
    backend = stage.backend(reads({}, values), keyring=keyring)
    built, got = await answered(backend)
    await backend.close()
    counted(built)
    assert got == await truth(model)
    assert built.brought.miss == "" and built.loaded_tokens > 0
    assert built.stored and stage.faulty is not None
    assert not stage.faulty._calls["write"], "what the tier has is not written again"


@pytest.mark.parametrize("trouble", [Trouble.FLIP, Trouble.TRUNCATE, Trouble.SWAP, Trouble.DROP])
@pytest.mark.parametrize("at", [0, 3, 8])
async def test_a_chunk_that_turns_out_bad_is_computed(model, stages, trouble, at):
    """And mended; what lies behind it was not loaded for nothing."""
    stage = await staged(model)
    stages.append(stage)
    backend = stage.backend(reads({at: trouble}, stage.values // 2))
    built, got = await answered(backend)
    counted(built)
    assert got == await truth(model)
    assert built.brought.miss == ("gone" if trouble is Trouble.DROP else "corrupt")
    assert built.brought.at < built.tokens and built.loaded_tokens > 64
    await backend.close()
    again = LocalBackend(model, store(model, [stage.tier], Store, always=True), CONFIG)
    built, got = await answered(again)
    await again.close()
    assert built.computed_tokens == 0 and got == await truth(model)


async def test_a_tier_that_fails_in_the_middle_leaves_the_rest_to_the_engine(model, stages):
    stage = await staged(model)
    stages.append(stage)

    def fails(method: str, n: int) -> Trouble | None:
        broken = n >= 6 if method == "read" else n > 0  # the first look-up goes well
        if broken:
            stage.gate.open()  # not before, or they may have met
        return Trouble.RAISE if broken else None

    backend = stage.backend(fails)
    built, got = await answered(backend)
    await backend.close()
    counted(built)
    assert got == await truth(model) and built.brought.miss == "tier_failed"


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_the_tier_does_the_answer_is_right(model, stages, seed):
    """A third of all calls and values goes wrong, each in its own way."""
    stage = await staged(model)
    stages.append(stage)
    stage.gate.open()
    tier = FaultyTier(stage.tier, often(seed, 0.3), delay_s=0.002)
    want = await truth(model)
    backend = LocalBackend(model, store(model, [tier]), CONFIG)
    built, got = await answered(backend)
    await backend.close()
    assert got == want and built.reused_tokens + built.computed_tokens == built.tokens
    assert tier.happened


async def test_a_fork_and_two_readers_while_it_is_loaded(model, stages):
    """All at once: what they share is computed once."""
    stage = await staged(model)
    stages.append(stage)
    stage.gate.open()  # whichever of the loads is the first
    backend = stage.backend(reads({}, stage.values // 2))
    batch = RequestBatch(SHORT, list(QUESTIONS), (BOOK,))
    other = RequestBatch(SHORT, list(QUESTIONS), (FORK,))
    build, rows, fork, more = await asyncio.gather(
        backend.build(BOOK), collect(backend, batch), collect(backend, other), backend.build(FORK)
    )
    again = await backend.build(BOOK)
    await backend.close()
    assert [row.tokens for row in rows] == await truth(model)
    assert [row.tokens for row in fork] == await truth(model, FORK)
    assert again.computed_tokens == again.loaded_tokens == 0
    for built in (build, more):
        assert built.reused_tokens + built.computed_tokens == built.tokens


async def test_who_leaves_while_it_is_loaded_leaves_nothing_behind(model, stages):
    stage = await staged(model)
    stages.append(stage)
    backend = stage.backend(reads({}, stage.values // 2))
    leaving = asyncio.create_task(backend.build(BOOK))
    while not await asyncio.to_thread(stage.gate.held.acquire, True, 0.01):
        pass  # the first step waits: the load is under way
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    stage.gate.open()
    stage.over.set()
    built, got = await answered(backend)
    assert got == await truth(model) and built.loaded_tokens + built.reused_tokens >= 0
    await backend.close()


async def likelihoods(backend: LocalBackend, vocab: int, *, reuse: bool = True) -> np.ndarray:
    """Log-probabilities of continuations that lie behind the book, one number each."""
    make = np.random.default_rng(5)
    ids = make.integers(1, vocab, 40 * 6).astype(np.int32)
    rows = Ragged(ids, np.arange(0, len(ids) + 1, 6))
    batch = RequestBatch(LogLikelihood(rows), [QUESTIONS[0]] * 40, (BOOK,), reuse=reuse)
    got = await collect(backend, batch)
    totals = np.array([sum(row.logprobs) for row in got])
    assert (totals < 0).all() and not any(row.error for row in got)
    return totals


async def test_in_half_precision_it_is_as_near_to_the_truth_as_computing_all(folders, stages):
    """Law 1: the error against float32 is at most 1.25 times that of the uncached pass."""
    folder = str(folders["qwen3"])
    wide = load_model(folder, dtype="float32", device="cpu")
    half = load_model(folder, dtype="bfloat16", device="cpu")
    stage = await staged(half)
    stages.append(stage)
    exact, plain = (LocalBackend(m, None, CONFIG) for m in (wide, half))
    want = await likelihoods(exact, wide.decoder.vocab_size, reuse=False)
    uncached = await likelihoods(plain, wide.decoder.vocab_size, reuse=False)
    both = stage.backend(reads({}, stage.values // 2))
    counted(await both.build(BOOK))
    cached = await likelihoods(both, wide.decoder.vocab_size)
    for backend in (exact, plain, both):
        await backend.close()

    def error(got: np.ndarray) -> float:
        return float(np.sqrt(np.mean((got - want) ** 2)))

    assert error(cached) <= 1.25 * error(uncached)


async def test_a_lossy_codec_loses_only_in_what_was_loaded(model, stages):
    options = {"codec": codec_of("int8")}
    stage = await staged(model, **options)
    stages.append(stage)
    backend = stage.backend(reads({}, stage.values // 2), **options)
    plain = LocalBackend(model, None, CONFIG)
    built = await backend.build(BOOK)
    counted(built)
    kv = []
    for one in (backend, plain):
        await one.build(BOOK)
        tokens = model.chat.prefix(BOOK)
        reading = one._thread.call(lambda engine: engine.hold(tokens))  # noqa: B023
        kv.append(one._builder._arena.read(reading.runs))
        one._thread.call(lambda engine: engine.release(reading))  # noqa: B023
        await one.close()
    off = (kv[0] - kv[1]).abs()
    head = built.computed_tokens
    assert torch.allclose(kv[0][:, :, :, :head], kv[1][:, :, :, :head], atol=1e-4)
    assert 1e-3 < float(off[:, :, :, head:].max()) < 0.2


async def test_a_group_of_devices_meets_too(folders):
    """What comes is written to the ranks between their steps."""
    wanted = Wanted(str(folders["qwen3"]), 2, dtype="float32", device="cpu", threads=1)
    one = load_model(str(folders["qwen3"]), dtype="float32", device="cpu")
    tier = MemoryTier(name="far")
    first = LocalBackend(one, store(one, [tier], Store, always=True), CONFIG)
    await first.build(BOOK)
    await first.close()
    made, parts = open_group(wanted)
    backend = LocalBackend(made, store(made, [tier]), CONFIG, parts=parts)
    built, got = await answered(backend)
    await backend.close()
    assert got == await truth(one)
    assert built.loaded_tokens + built.computed_tokens == built.tokens
