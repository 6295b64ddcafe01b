"""Loads to a device that works by itself: it copies when it likes, and what is in its memory in the
end is what was computed."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from preread.contexts.rows import collect
from preread.engine.local import LocalBackend
from preread.models.load import LoadedModel, load_model
from preread.store.codec import codec_of
from preread.store.room import KEPT, Recycled
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers.base import Tier, fresh
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.testing.faulty import FaultyTier, often
from preread.testing.models import write_tiny_model
from preread.testing.questions import BOOK
from tests.engine.device import CUDA, Device, Stream
from tests.engine.test_layers import (
    CONFIG,
    LAYERS,
    SPAN,
    WORKS,
    ByLayer,
    BySpan,
    counts,
    same,
    store,
)
from tests.parity.test_both_at_once import Both

SEAL = Keyring.parse(sha256(b"a test").hexdigest(), "a test")
SOON_S = 30.0  # what is waited for in vain lasts longer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = write_tiny_model(tmp_path_factory.mktemp("deep") / "m", "qwen3", layers=LAYERS)
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Threads take turns often."""
    device, often = Device(monkeypatch), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield device
    sys.setswitchinterval(often)
    device.check()


def opened(model: LoadedModel, *tiers: Tier, kind: type[Store] = Store, **options) -> LocalBackend:
    options = {"always": kind is Store, "room": Recycled()} | options
    return LocalBackend(model, store(model, [*tiers], kind, **options), CONFIG)


def kept(backend: LocalBackend, tokens) -> torch.Tensor:
    """The KV of the book in memory."""

    def read(engine):
        leaf, found = engine.tree.match(tokens)
        assert found == len(tokens) == engine.tree.ready(leaf, found)
        return engine.arena.read(engine.tree.runs(leaf, 0, found))

    return backend._thread.call(read)


async def computed(model: LoadedModel, tier: Tier, **options) -> torch.Tensor:
    """The KV of the book, which the tier holds from now on."""
    backend = opened(model, tier, **options)
    assert (await backend.build(BOOK)).stored
    kv = kept(backend, model.chat.prefix(BOOK))
    await backend.close()
    return kv


def tier_of(kind: str, folder: Path) -> Tier:
    return DiskTier(folder / "kv", fsync=False, window=4) if kind == "disk" else MemoryTier()


@pytest.mark.parametrize("kind", [Store, BySpan, Both])
@pytest.mark.parametrize("ready", [0, SPAN + 5])
@pytest.mark.parametrize("where", ["ram", "disk"])
@pytest.mark.parametrize("how", ["plain", "sealed", "eight bits", "lossy"])
async def test_what_is_loaded_is_what_was_computed(
    model, device, tmp_path, where, how, ready, kind
):  # fmt: skip
    options = {"sealed": {"keyring": SEAL}, "lossy": {"codec": codec_of("int8")}}.get(how, {})
    if how == "eight bits":
        model = replace(model, kv_precision="int8")
    tier = tier_of(where, tmp_path)
    want, tokens = await computed(model, tier, **options), model.chat.prefix(BOOK)
    for _ in range(2):  # the second time with memory that was used before
        backend = opened(model, tier, kind=kind, **options)
        if ready:
            backend.prefill(tokens[:ready], store=False)
            there = kept(backend, tokens[:ready])
        built = await backend.build(BOOK)
        assert built.loaded_tokens + built.computed_tokens + ready == built.tokens
        assert kind is Both or built.loaded_tokens == built.tokens - ready
        got = kept(backend, tokens)
        await backend.close()
        assert not ready or torch.equal(got[:, :, :, :ready], there)
        first = built.tokens - built.loaded_tokens
        if how in ("plain", "sealed"):
            assert torch.equal(got[:, :, :, first:], want[:, :, :, first:])
        assert torch.allclose(got, want, atol=1e-4 if how in ("plain", "sealed") else 0.2)
    assert device.copies > 0


@pytest.mark.parametrize("where", ["ram", "disk"])
async def test_a_step_beside_the_load_sees_no_layer_before_it_was_copied(
    model, device, tmp_path, where
):
    tier, got = tier_of(where, tmp_path), []
    await computed(model, tier)
    for kind in (BySpan, ByLayer):
        backend = opened(model, tier, kind=kind)
        got.append(await collect(backend, WORKS["generate"]))
        assert counts(backend) == (kind is ByLayer, 0)
        await backend.close()
    same(*got)


@pytest.mark.parametrize("kind", [Store, ByLayer, Both])
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_goes_wrong_nothing_is_copied_late(model, device, seed, kind):
    draw = random.Random(seed)
    device.before = lambda: time.sleep(draw.random() * 1e-3)
    tier = MemoryTier()
    want = await computed(model, tier)
    for n in range(4):
        backend = opened(
            model, FaultyTier(tier, often(10 * seed + n, 0.1), delay_s=0.002), kind=kind
        )
        await backend.build(BOOK)
        assert torch.allclose(kept(backend, model.chat.prefix(BOOK)), want, atol=1e-4)
        await backend.close()


async def test_engines_that_load_from_one_tier_at_once_are_apart(model, device, tmp_path):
    """Each has its own way to the device."""
    tier = tier_of("disk", tmp_path)
    want = await computed(model, tier)
    room = Recycled()
    backends = [opened(model, tier, kind=kind, room=room) for kind in (Store, ByLayer, Both)]
    for rows in await asyncio.gather(*(collect(b, WORKS["generate"]) for b in backends)):
        assert not rows[0].error
    for backend in backends:
        assert torch.allclose(kept(backend, model.chat.prefix(BOOK)), want, atol=1e-4)
        await backend.close()


async def test_memory_under_way_is_bounded_whatever_the_device_does(model, device, tmp_path):
    """Threads read ahead, and nothing is copied before somebody waits for it."""
    made: list[int] = []

    def make(nbytes: int) -> memoryview:
        made.append(nbytes)
        return fresh(nbytes)

    tier, options = tier_of("disk", tmp_path), {"box": 10_000}
    await computed(model, tier, **options)
    backend = opened(model, tier, room=Recycled(make, kept=1000), **options)
    built = await backend.build(BOOK)
    assert built.loaded_tokens == built.tokens
    assert device.copies > 2 * KEPT and 0 < len(made) <= KEPT, len(made)
    await backend.close()


async def until(true: Callable[[], bool]) -> None:
    over = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < over, "it never came to that"
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("kind", [Store, Both])
async def test_who_leaves_lets_go_of_places_when_what_was_given_is_copied(model, device, kind):
    tier = MemoryTier()
    want = await computed(model, tier)
    entered, go = threading.Event(), threading.Event()

    def before() -> None:
        entered.set()
        assert go.wait(SOON_S)

    device.before = before
    backend = opened(model, tier, kind=kind)
    building = asyncio.create_task(backend.build(BOOK))
    await until(entered.is_set)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert backend._thread.call(lambda engine: bool(engine.readings.outside)), "who left waits"
    go.set()
    await until(lambda: not backend._thread.call(lambda engine: engine.readings.outside))
    copies, device.before = device.copies, lambda: None
    built = await backend.build(BOOK)  # to the same places
    assert built.loaded_tokens > 0 and device.copies > copies
    assert torch.allclose(kept(backend, model.chat.prefix(BOOK)), want, atol=1e-4)
    await backend.close()


def fails(device: Device, nth: int, error: Exception) -> None:
    """The nth copy from now on."""
    counted = itertools.count(1)

    def before() -> None:
        if next(counted) == nth:
            raise error

    device.before = before


@pytest.mark.parametrize("kind", [Store, ByLayer, Both])
@pytest.mark.parametrize("where", ["ram", "disk"])
@pytest.mark.parametrize("nth", [1, 20])
async def test_a_copy_that_fails_is_said_to_who_asked_and_held_against_no_tier(
    model, device, tmp_path, where, kind, nth
):
    tier = tier_of(where, tmp_path)
    want = await computed(model, tier)
    backend = opened(model, tier, kind=kind)
    fails(device, nth, torch.OutOfMemoryError("injected"))
    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        await backend.build(BOOK)
    assert not [name for name in backend.metrics.snapshot() if "fail" in name or "miss" in name]
    device.before = lambda: None
    built = await backend.build(BOOK)
    assert built.reused_tokens == built.tokens - built.computed_tokens
    assert torch.allclose(kept(backend, model.chat.prefix(BOOK)), want, atol=1e-4)
    await backend.close()


async def test_what_a_device_has_not_copied_was_not_loaded(model, device, monkeypatch):
    """It says so when it is waited for."""
    tier = MemoryTier()
    want = await computed(model, tier)
    backend, synchronize = opened(model, tier), Stream.synchronize
    failures = [RuntimeError("CUDA error")]

    def broken(stream: Stream) -> None:
        if stream is not device.steps and failures:
            raise failures.pop()
        synchronize(stream)

    monkeypatch.setattr(Stream, "synchronize", broken)
    with pytest.raises(RuntimeError, match="CUDA error"):
        await backend.build(BOOK)
    tokens = model.chat.prefix(BOOK)
    assert backend._thread.call(lambda engine: ready(engine, tokens)) == 0
    await backend.build(BOOK)
    assert torch.allclose(kept(backend, tokens), want, atol=1e-4)
    await backend.close()


def ready(engine, tokens) -> int:
    leaf, found = engine.tree.match(tokens)
    return engine.tree.ready(leaf, found) if found else 0


async def test_a_caller_has_its_own_stream_again(model, device):
    """A build runs on its thread."""
    tier = MemoryTier()
    await computed(model, tier)
    own = Stream(eager=True)
    torch.cuda.set_stream(own)
    torch.cuda.set_device(0)
    for kind in (Store, Both):
        backend = opened(model, tier, kind=kind)
        backend.prefill(model.chat.prefix(BOOK)[: SPAN // 2], store=False)  # so that it copies, too
        assert backend.prefill(model.chat.prefix(BOOK)).loaded_tokens > 0
        assert torch.cuda.current_stream(CUDA) is own and torch.cuda.current_device() == 0
        await backend.close()
    torch.cuda.set_stream(device.steps)
