"""Loading beside the steps of a CUDA device: copies on a stream of their own, layers that are
waited for on the device, and both at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from preread.backend import Generate, RequestBatch
from preread.contexts.rows import Row, collect
from preread.engine.arena import Arena
from preread.engine.kv import KVShape
from preread.engine.local import LocalBackend
from preread.engine.uploads import EACH, KEPT, Uploads
from preread.models.load import LoadedModel, load_model
from preread.store.room import Recycled
from preread.store.store import Store
from preread.store.tiers.base import Tier
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.testing.faulty import FaultyTier, Plan, Trouble, often
from preread.testing.models import write_tiny_model
from preread.testing.questions import BOOK, OTHER, QUESTIONS
from tests.engine.test_layers import CONFIG, LAYERS, LONG_S, ByLayer, BySpan, counts, store
from tests.parity.test_both_at_once import Both

pytestmark = pytest.mark.gpu
ASK = RequestBatch(Generate(max_tokens=16, ignore_eos=True, logprobs=True), [QUESTIONS[0]], (BOOK,))
BOXES = {"float32": 80_000, "bfloat16": 40_000}  # one layer of 64 tokens, heads of 64
CUDA = torch.device("cuda")


def pinned(nbytes: int) -> memoryview:
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy().data


@pytest.fixture(scope="module", params=BOXES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("deep") / "m"
    write_tiny_model(folder, "qwen3", layers=LAYERS, head_dim=64)
    return load_model(str(folder), dtype=request.param, device="cuda")


def opened(model: LoadedModel, tier: Tier, kind: type[Store] = ByLayer, **options) -> LocalBackend:
    room = Recycled(pinned)
    kept = store(model, [tier], kind, box=BOXES[model.dtype], room=room, **options)
    return LocalBackend(model, kept, CONFIG)


@pytest.fixture
async def tier(model: LoadedModel) -> MemoryTier:
    """It holds the book."""
    made = MemoryTier(name="far", make=pinned)
    backend = opened(model, made, Store, always=True)
    built = await backend.build(BOOK)
    await backend.close()
    assert built.stored and len(built.chunk_keys) % LAYERS == 0
    return made


@pytest.fixture
async def truth(model: LoadedModel, tier: MemoryTier) -> list[Row]:
    """By the ordinary load."""
    backend = opened(model, tier, BySpan)
    rows = await collect(backend, ASK)
    assert counts(backend) == (0, 0)
    await backend.close()
    return rows


def same(got: list[Row], want: list[Row], tolerance: float) -> None:
    """Equal up to where rounding decides, which two computations of the same KV leave open."""
    for a, b in zip(got, want, strict=True):
        assert not a.error and not b.error
        pairs = zip(a.tokens, b.tokens, strict=True)
        first = next((i for i, (x, y) in enumerate(pairs) if x != y), len(b.tokens))
        assert a.logprobs[: first + 1] == pytest.approx(b.logprobs[: first + 1], abs=tolerance)


def tolerance(model: LoadedModel) -> float:
    return 2e-4 if model.dtype == "float32" else 0.05


async def test_it_is_the_ordinary_load_to_the_bit(model, tier, truth):
    backend = opened(model, tier)
    got = await collect(backend, ASK)
    assert counts(backend) == (1, 0) and got[0].timing.brought.by_layer
    assert got[0].tokens == truth[0].tokens and got[0].logprobs == truth[0].logprobs
    again = await collect(backend, ASK)  # from memory: what was streamed is there to stay
    assert again[0].tokens == truth[0].tokens and again[0].timing.brought is None
    await backend.close()


async def test_many_times_over_it_never_sees_a_layer_before_it_is_there(model, tier, truth):
    """The arena holds another prefix's KV where this one's comes: a step that runs ahead of a copy
    says something else."""
    backend = opened(model, tier, always=True)  # else what else was computed says what is too slow
    for n in range(20):
        await backend.build(OTHER if n % 2 else replace(BOOK, system=BOOK.system[::-1]))
        await backend.forget([BOOK, OTHER, replace(BOOK, system=BOOK.system[::-1])])
        (row,) = await collect(backend, ASK)
        assert row.timing.brought.tokens == row.usage.cached_tokens and not row.timing.brought.miss
        assert row.tokens == truth[0].tokens and row.logprobs == truth[0].logprobs
    assert sum(counts(backend)) > 0
    await backend.close()


async def test_from_disk(model, tier, truth, tmp_path: Path):
    disk = DiskTier(tmp_path / "kv", fsync=False)
    for entry in tier.scan():
        (value,) = tier.read([entry.key])
        assert isinstance(value, memoryview)
        disk.write(entry.key, [value])
    backend = opened(model, disk)
    got = await collect(backend, ASK)
    assert counts(backend) == (1, 0) and got[0].logprobs == truth[0].logprobs
    await backend.close()


@pytest.fixture
def over() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("trouble", [Trouble.FLIP, Trouble.DROP, Trouble.DELAY])
@pytest.mark.parametrize("layer", [0, 3, LAYERS - 1])
async def test_what_goes_wrong_in_the_middle_leaves_nothing_of_the_step(
    model, tier, truth, over, trouble, layer
):
    values = sum(1 for _ in tier.scan())
    at = layer * (values // LAYERS) + 1
    plan: Plan = lambda method, n: trouble if (method, n) == ("read", at) else None  # noqa: E731
    faulty = FaultyTier(tier, plan, sleep=lambda s: over.wait(LONG_S))
    backend = opened(model, faulty, token_s=1e-3)
    (row,) = await collect(backend, ASK)
    same([row], truth, tolerance(model))
    assert counts(backend)[0] == 0 and not row.timing.brought.by_layer
    over.set()
    same(await collect(backend, ASK), truth, tolerance(model))
    await backend.close()


async def test_out_of_memory_in_the_middle(model, tier, truth):
    failures = [torch.OutOfMemoryError("injected")]

    class Short:
        def __getattr__(self, name: str):
            return getattr(model.decoder, name)

        def hidden(self, tokens, positions, attend):
            def fails(layer, *qkv):
                if layer == 3 and failures:
                    raise failures.pop()
                return attend(layer, *qkv)

            return model.decoder.hidden(tokens, positions, fails)

    backend = opened(replace(model, decoder=Short()), tier)
    got = await collect(backend, ASK)
    same(got, truth, tolerance(model))
    assert counts(backend) == (0, 1)
    await backend.close()


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_the_tier_does_the_answer_is_right(model, tier, truth, seed):
    faulty = FaultyTier(tier, often(seed, 0.1), delay_s=0.002)
    backend = opened(model, faulty)
    for _ in range(3):
        same(await collect(backend, ASK), truth, tolerance(model))
        await backend.forget([BOOK])
    await backend.close()


@pytest.mark.parametrize("seed", range(6))
async def test_both_at_once_on_a_stream_of_its_own(model, tier, truth, seed):
    """Wherever the two meet, and with every third value late."""

    def late(method: str, n: int) -> Trouble | None:
        return Trouble.DELAY if method == "read" and (n + seed) % 3 == 0 else None

    backend = opened(model, FaultyTier(tier, late, delay_s=0.001 * seed), Both)
    built = await backend.build(BOOK)
    assert built.loaded_tokens + built.computed_tokens == built.tokens
    same(await collect(backend, ASK), truth, tolerance(model))
    await backend.close()


# --- the copies themselves ---


def test_a_copy_waits_for_no_step_and_a_step_for_the_copy():
    uploads, size = Uploads(CUDA), 1 << 20
    assert not uploads.waits
    there, done = torch.zeros(size, device=CUDA), torch.cuda.Event()
    source = torch.ones(size).pin_memory()
    torch.cuda._sleep(1 << 30)  # a step of half a second
    done.record()
    uploads.copy(lambda: there.copy_(source, non_blocking=True), source)
    uploads.settle()
    assert not done.query(), "the copy has waited for the step"
    uploads.behind()()
    assert float(there.sum()) == size


def test_what_came_before_a_load_is_not_overtaken():
    """Places that a step still writes are written after it."""
    uploads, there = Uploads(CUDA), torch.zeros(1 << 10, device=CUDA)
    torch.cuda._sleep(1 << 28)
    there.fill_(2)
    uploads.begin()
    source = torch.ones(1 << 10).pin_memory()
    uploads.copy(lambda: there.copy_(source, non_blocking=True), source)
    uploads.settle()
    assert bool((there == 1).all())


def test_memory_that_is_used_again_is_copied_first():
    """A room gives a buffer again when nobody holds it."""
    uploads, room, count = Uploads(CUDA), Recycled(pinned), 8 * KEPT * EACH
    there = torch.zeros(count, 1 << 18, dtype=torch.uint8, device=CUDA)
    for n in range(count):
        view = room(1 << 18)
        source = torch.frombuffer(view, dtype=torch.uint8)
        source.fill_(n)
        uploads.copy(lambda n=n, s=source: there[n].copy_(s, non_blocking=True), source)
        del view, source
        uploads.ease()
        assert len(uploads._under_way) <= KEPT
    uploads.settle()
    assert bool((there == torch.arange(count, dtype=torch.uint8, device=CUDA)[:, None]).all())


def test_who_settles_has_its_own_stream_again():
    uploads, there = Uploads(CUDA), torch.zeros(4, device=CUDA)
    source = torch.ones(4).pin_memory()
    uploads.begin()
    uploads.copy(lambda: there.copy_(source, non_blocking=True), source)
    assert torch.cuda.current_stream() != torch.cuda.default_stream()
    uploads.settle()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    with torch.cuda.stream(torch.cuda.Stream()):  # a caller may have chosen one
        own = torch.cuda.current_stream()
        uploads.copy(lambda: there.copy_(source, non_blocking=True), source)
        assert torch.cuda.current_stream() != own
        uploads.settle()
        assert torch.cuda.current_stream() == own


@pytest.mark.parametrize("seed", range(12))
def test_one_copy_of_many_rows_is_what_torch_copies(seed):
    draw = random.Random(seed)
    dtype = [torch.bfloat16, torch.float32][seed % 2]
    arenas = [Arena(KVShape(4, 3, 64, dtype, CUDA), 8, 64) for _ in range(2)]
    assert arenas[0].kv._rows is not None, "the runtime was not found"
    arenas[1].kv._rows = None  # the slow twin
    i, j = sorted(draw.sample(range(5), 2))
    g, h = sorted(draw.sample(range(4), 2)) if seed % 3 else (0, 3)
    first = draw.randrange(3)
    runs = [(70, 41), (5, 12)][: 1 + seed % 2]
    tokens = sum(n for _, n in runs)
    view = pinned((j - i) * 2 * (h - g) * (first + tokens) * 64 * dtype.itemsize)
    kv = torch.frombuffer(view, dtype=dtype).view(j - i, 2, h - g, first + tokens, 64)
    kv.copy_(torch.randn(kv.shape))
    some, uploads = kv[:, :, :, first:], Uploads(CUDA)
    for arena in arenas:
        arena.kv.values.fill_(7)
        uploads.begin()
        write = partial(arena.write, runs, some, (i, j, g, h), wait=False)
        uploads.copy(write, kv)
        uploads.settle()
    assert torch.equal(*(arena.kv.values for arena in arenas))
    assert not bool((arenas[0].kv.values == 7).all())
