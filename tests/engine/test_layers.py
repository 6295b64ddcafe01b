"""Layer by layer: what stands behind a prefix is computed while its last layers are still coming,
and is to the bit what it is where they were all there; or it never happened."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from preread.backend import Choose, Generate, Leaving, LogLikelihood, RequestBatch
from preread.contexts.rows import Row, collect
from preread.engine.layers import Layers, NotComing
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
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.testing.faulty import FaultyTier, Plan, Trouble, often
from preread.testing.models import write_tiny_model
from preread.testing.questions import BOOK, OTHER, QUESTIONS, SHORT
from preread.types import Finish
from tests.parity.tools import CONFIG as PLAIN

LAYERS, SPAN = 6, 64
CONFIG = replace(PLAIN, truth_check=True)
SEAL = Keyring.parse(sha256(b"a test").hexdigest(), "a test")
LONG_S = 60.0  # a test that waits so long fails
ASK = Generate(max_tokens=8, ignore_eos=True, logprobs=True)
WORKS = {
    "generate": RequestBatch(ASK, [QUESTIONS[0]], (BOOK,)),
    "one token": RequestBatch(Generate(max_tokens=1, ignore_eos=True), [QUESTIONS[1]], (BOOK,)),
    "choose": RequestBatch(Choose(("yes", "no", "not at all")), [QUESTIONS[2]], (BOOK,)),
    "loglikelihood": RequestBatch(LogLikelihood([" on floor 4"]), [QUESTIONS[0]], (BOOK,)),
    "three rows": RequestBatch(ASK, ["x?", "Why?", "1 + 1?"], (BOOK,)),
}


class ByLayer(Store):
    """Loads all that is held, by layer."""

    def choose(self, found: Found, start: int = 0, *, both: bool = False) -> Choice:
        return super().choose(found, start)._replace(upto=found.tokens)

    def by_layer(self, found: Found, choice: Choice, tail: int) -> bool:
        return choice.upto == found.spans[-1][0].end


class BySpan(ByLayer):
    """The slow twin."""

    def by_layer(self, found: Found, choice: Choice, tail: int) -> bool:
        return False


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = write_tiny_model(tmp_path_factory.mktemp("deep") / "m", "qwen3", layers=LAYERS)
    return load_model(str(folder), dtype="float32", device="cpu")


def store(
    model: LoadedModel, tiers: list[Tier], kind: type[Store] = ByLayer, *, box: int = 20_000,
    token_s: float = 1e-2, **options,
) -> Store:  # fmt: skip
    """One layer in a box; computing is known to take so long, and so how long a load may."""
    shape, rates = model.config, Rates()
    for n in (256, 1024):
        rates.computed(0, n, n * token_s)
    geometry = Geometry(shape.layers, shape.kv_heads, shape.head_dim, model.dtype, SPAN, box)
    return kind(tiers, geometry, fingerprint(model.fingerprint_parts), rates=rates, **options)


class Watched:
    """A decoder that tells after the attention of each layer of each step."""

    def __init__(self, decoder, seen: Callable[[int], None]) -> None:
        self._decoder, self._seen = decoder, seen

    def __getattr__(self, name: str):
        return getattr(self._decoder, name)

    def hidden(self, tokens, positions, attend):
        def watched(layer, q, k, v):
            out = attend(layer, q, k, v)
            self._seen(layer)
            return out

        return self._decoder.hidden(tokens, positions, watched)


@dataclass
class Stage:
    """A tier that holds the book, and another that hands it on, where a value may be held up."""

    model: LoadedModel
    inner: Tier
    values: int  # of the book
    seen: Callable[[int], None] = lambda layer: None
    held: threading.Event = field(default_factory=threading.Event)  # a value is held up
    over: threading.Event = field(default_factory=threading.Event)  # not any longer
    faulty: FaultyTier | None = None

    def backend(
        self, plan: Plan, kind: type[Store] = ByLayer, *, config=CONFIG, **options
    ) -> LocalBackend:
        def hold(seconds: float) -> None:
            self.held.set()
            assert self.over.wait(LONG_S)

        self.faulty = FaultyTier(self.inner, plan, sleep=hold)
        watched = replace(self.model, decoder=Watched(self.model.decoder, self.seen))
        return LocalBackend(watched, store(self.model, [self.faulty], kind, **options), config)

    @property
    def spans(self) -> int:
        return self.values // LAYERS


@pytest.fixture
def stages() -> Iterator[list[Stage]]:
    made: list[Stage] = []
    yield made
    for stage in made:
        stage.over.set()


async def staged(model: LoadedModel, stages: list[Stage], inner: Tier | None = None, **options):
    tier = inner or MemoryTier(name="far")
    first = LocalBackend(model, store(model, [tier], Store, always=True, **options), CONFIG)
    built = await first.build(BOOK)
    await first.close()
    assert built.stored and built.computed_tokens == built.tokens
    stages.append(stage := Stage(model, tier, len(built.chunk_keys)))
    return stage


def well(method: str, n: int) -> None:
    """Nothing happens."""


def reads(troubles: dict[int, Trouble]) -> Plan:
    """By the number of the value that is read."""
    return lambda method, n: troubles.get(n) if method == "read" else None


def counts(backend: LocalBackend) -> tuple[int, int]:
    """Steps beside a load: computed, given up."""
    told = backend.metrics.snapshot()
    names = "engine.steps_by_layer", "engine.steps_given_up"
    return int(told.get(names[0], 0)), int(told.get(names[1], 0))


def same(got: list[Row], want: list[Row]) -> None:
    """To the bit."""
    for a, b in zip(got, want, strict=True):
        assert not a.error and not b.error
        assert (a.text, a.tokens, a.finish, a.logprobs) == (b.text, b.tokens, b.finish, b.logprobs)
        assert (a.label_probs, a.mass, a.is_greedy) == (b.label_probs, b.mass, b.is_greedy)
        assert a.usage == b.usage


@pytest.fixture(scope="module")
def truth(model) -> dict[str, list[Row]]:
    """Without a store, without reuse."""

    async def ask() -> dict[str, list[Row]]:
        backend = LocalBackend(model, None, CONFIG)
        rows = {n: await collect(backend, replace(b, reuse=False)) for n, b in WORKS.items()}
        await backend.close()
        return rows

    return asyncio.run(ask())


def right(got: list[Row], want: list[Row]) -> None:
    for a, b in zip(got, want, strict=True):
        assert not a.error and a.tokens == b.tokens
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def added_up(row: Row, tokens: int) -> None:
    """Every token once, and said."""
    came = row.timing.brought
    assert came is not None and came.tokens == sum(tier.tokens for tier in came.served)
    assert row.usage.cached_tokens == came.tokens
    assert row.usage.cached_tokens + row.usage.computed_tokens == tokens


# --- the noun ---


def test_a_layer_is_waited_for_and_its_copies_are_passed_once():
    layers, passed = Layers(6), []
    layers.arrived(2, lambda: passed.append(2))
    layers.wait(0)
    layers.wait(1)
    assert passed == [2]
    waiting = threading.Thread(target=lambda: layers.wait(2))
    waiting.start()
    layers.arrived(4, lambda: passed.append(4))
    waiting.join(LONG_S)
    assert passed == [2, 4] and not waiting.is_alive()
    layers.arrived(6, lambda: passed.append(6))
    layers.quit()
    layers.wait(3)
    layers.wait(5)  # it is there, whoever has left
    assert passed == [2, 4, 6]
    layers.check()


def test_what_does_not_come_is_not_waited_for():
    layers, error = Layers(4), []

    def wait() -> None:
        try:
            layers.wait(1)
        except NotComing as exc:
            error.append(exc)

    layers.arrived(1, lambda: None)
    waiting = threading.Thread(target=wait)
    waiting.start()
    layers.quit()
    waiting.join(LONG_S)
    assert error and not waiting.is_alive()
    layers.arrived(3, lambda: None)  # it came after all
    layers.wait(1)
    with pytest.raises(NotComing):
        layers.wait(3)
    with pytest.raises(AssertionError):
        layers.arrived(2, lambda: None)


def test_an_attention_waits_before_it_looks():
    layers, looked = Layers(2), []
    layers.arrived(1, lambda: looked.append("copied"))

    def attend(layer, q, k, v):
        looked.append(layer)
        return q

    waits = layers.before(attend)
    row = torch.zeros(1)
    waits(0, row, row, row)
    layers.quit()
    with pytest.raises(NotComing):
        waits(1, row, row, row)
    assert looked == ["copied", 0]


# --- the same answers ---


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("box", [20_000, 10_000, 40_000], ids=["layer", "head", "two layers"])
async def test_it_is_the_ordinary_load_to_the_bit(model, stages, truth, work, box):
    stage = await staged(model, stages, box=box)
    got = {}
    for kind in (BySpan, ByLayer):
        backend = stage.backend(well, kind, box=box)
        got[kind] = await collect(backend, WORKS[work])
        assert counts(backend) == (kind is ByLayer, 0)
        await backend.close()
    same(got[ByLayer], got[BySpan])
    right(got[ByLayer], truth[work])
    for row in got[ByLayer]:
        came = row.timing.brought
        assert came is not None and came.by_layer and came.to_json()["by_layer"]
        assert came.miss == "" and row.timing.ttft_ms > 0


@pytest.mark.parametrize("kind", ["disk", "sealed", "int8"])
async def test_from_any_tier_and_codec(model, stages, tmp_path: Path, kind):
    options = {"sealed": {"keyring": SEAL}, "int8": {"codec": codec_of("int8")}}.get(kind, {})
    inner = DiskTier(tmp_path, fsync=False) if kind == "disk" else None
    stage = await staged(model, stages, inner, **options)
    got = []
    for way in (BySpan, ByLayer):
        backend = stage.backend(well, way, **options)
        got.append(await collect(backend, WORKS["generate"]))
        assert counts(backend) == (way is ByLayer, 0)
        await backend.close()
    same(*got)


@pytest.mark.parametrize("ready", [1, SPAN - 1, SPAN, SPAN + 5, 5 * SPAN + 3])
async def test_what_was_there_already_stays(model, stages, truth, ready):
    stage = await staged(model, stages)
    backend = stage.backend(well)
    backend.prefill(model.chat.prefix(BOOK)[:ready], store=False)
    (row,) = await collect(backend, WORKS["generate"])
    assert counts(backend) == (1, 0)
    right([row], truth["generate"])
    assert row.timing.brought is not None and row.timing.brought.tokens > 0
    again = await collect(backend, WORKS["generate"])  # in memory now
    assert again[0].timing.brought is None
    same(again, [row])
    await backend.close()


@pytest.mark.parametrize("layer", range(1, LAYERS))
async def test_the_step_goes_as_far_as_the_layers_that_are_there(model, stages, truth, layer):
    """Nothing of a layer comes before the one before it has been attended to."""
    stage = await staged(model, stages)
    seen: list[int] = []

    def looked(at: int) -> None:
        seen.append(at)
        if len(seen) == layer:
            stage.over.set()  # not before: the next layer is held up

    stage.seen = looked
    backend = stage.backend(reads({layer * stage.spans: Trouble.DELAY}))
    got = await collect(backend, WORKS["generate"])
    assert stage.held.is_set() and seen[:LAYERS] == list(range(LAYERS))
    assert counts(backend) == (1, 0)
    right(got, truth["generate"])
    await backend.close()


# --- what goes wrong ---


@pytest.mark.parametrize("trouble", [Trouble.FLIP, Trouble.TRUNCATE, Trouble.SWAP, Trouble.DROP])
@pytest.mark.parametrize("layer", [0, 2, LAYERS - 1])
@pytest.mark.parametrize("span", [0, 3])
async def test_a_broken_box_is_as_if_nothing_had_been_computed(
    model, stages, truth, trouble, layer, span
):
    """The spans before it are kept, the others computed; the next load finds all whole."""
    stage = await staged(model, stages)
    backend = stage.backend(reads({layer * stage.spans + span: trouble}))
    (row,) = await collect(backend, WORKS["generate"])
    assert counts(backend)[0] == 0
    right([row], truth["generate"])
    want = truth["generate"][0].usage
    added_up(row, want.cached_tokens + want.computed_tokens)
    came = row.timing.brought
    assert came is not None and not came.by_layer and came.tokens == came.at == span * SPAN
    assert came.miss == ("gone" if trouble is Trouble.DROP else "corrupt")
    again = await collect(backend, WORKS["generate"])
    right(again, truth["generate"])
    await backend.close()
    mended = stage.backend(well)
    (row,) = await collect(mended, WORKS["generate"])
    assert counts(mended) == (1, 0) and row.timing.brought.miss == ""
    await mended.close()


@pytest.mark.parametrize("layer", [0, 3, LAYERS - 1])
async def test_a_tier_that_fails_brings_nothing(model, stages, truth, layer):
    stage = await staged(model, stages)

    def fails(method: str, n: int) -> Trouble | None:
        broken = n >= layer * stage.spans + 1 if method == "read" else n > 0
        return Trouble.RAISE if broken else None

    backend = stage.backend(fails)
    (row,) = await collect(backend, WORKS["generate"])
    await backend.close()
    right([row], truth["generate"])
    assert row.timing.brought.miss == "tier_failed" and not row.timing.brought.by_layer
    assert counts(backend)[0] == 0


@pytest.mark.parametrize("layer", [1, LAYERS - 1])
async def test_a_tier_that_hangs_is_waited_for_no_longer_than_computing_takes(
    model, stages, truth, layer
):
    stage = await staged(model, stages)
    backend = stage.backend(reads({layer * stage.spans + 1: Trouble.DELAY}), token_s=5e-4)
    (row,) = await collect(backend, WORKS["generate"])
    assert stage.held.is_set() and not stage.over.is_set()
    right([row], truth["generate"])
    assert counts(backend) == (0, 1) and row.timing.brought.miss == "too_slow"
    stage.over.set()
    right(await collect(backend, WORKS["generate"]), truth["generate"])
    await backend.close()


async def test_who_comes_meanwhile_does_not_wait_for_the_load(model, stages, truth):
    """The step is given up at once; the other is answered while the tier still hangs."""
    stage, begun = await staged(model, stages), threading.Event()
    stage.seen = lambda layer: begun.set()
    backend = stage.backend(reads({3 * stage.spans: Trouble.DELAY}))
    slow = asyncio.create_task(collect(backend, WORKS["generate"]))
    assert await asyncio.to_thread(begun.wait, LONG_S) and not stage.over.is_set()
    bare = RequestBatch(SHORT, [QUESTIONS[0]])
    (other,) = await asyncio.wait_for(collect(backend, bare), LONG_S)
    assert not other.error and not slow.done() and counts(backend) == (0, 1)
    stage.over.set()
    right(await slow, truth["generate"])
    await backend.close()


async def test_who_leaves_meanwhile_leaves_nothing_behind(model, stages, truth):
    stage, begun = await staged(model, stages), threading.Event()
    stage.seen = lambda layer: begun.set()
    backend = stage.backend(reads({3 * stage.spans: Trouble.DELAY}))
    leaving = asyncio.create_task(collect(backend, WORKS["generate"]))
    assert await asyncio.to_thread(begun.wait, LONG_S)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    stage.over.set()
    right(await collect(backend, WORKS["generate"]), truth["generate"])
    await backend.build(OTHER)
    assert await asyncio.to_thread(empty, backend)
    await backend.close()


@dataclass
class Halt:
    """Holds a step up in its last layer, once."""

    come: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def __call__(self, layer: int) -> None:
        if layer == LAYERS - 1:
            self.come.set()
            assert self.go.wait(LONG_S)


async def test_who_leaves_in_the_last_layer_is_not_listened_for(model, stages, truth):
    """The step is computed, for nobody."""
    stage = await staged(model, stages)
    stage.seen = halt = Halt()
    backend = stage.backend(well)
    leaving = asyncio.create_task(collect(backend, WORKS["generate"]))
    assert await asyncio.to_thread(halt.come.wait, LONG_S)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    halt.go.set()
    assert await asyncio.to_thread(empty, backend)
    assert not backend._thread._listeners
    right(await collect(backend, WORKS["generate"]), truth["generate"])
    await backend.close()


async def test_rows_that_wait_behind_such_a_step_are_withdrawn(model, stages, truth):
    """Withdrawn while it is computed: the one row that takes part goes on, the others never run."""
    stage = await staged(model, stages)
    stage.seen = halt = Halt()
    backend = stage.backend(well, config=replace(CONFIG, max_sequences=1))
    batch = replace(WORKS["three rows"], leaving=(leaving := Leaving()))
    asked = asyncio.create_task(collect(backend, batch))
    assert await asyncio.to_thread(halt.come.wait, LONG_S)
    leaving.withdraw()
    halt.go.set()
    rows = await asked
    assert counts(backend) == (1, 0)
    assert [row.finish for row in rows] == [Finish.LENGTH, Finish.CANCELLED, Finish.CANCELLED]
    right(rows[:1], truth["three rows"][:1])
    await backend.close()


async def test_what_was_withdrawn_begins_no_step(model, stages):
    stage = await staged(model, stages)
    backend = stage.backend(reads({0: Trouble.DELAY}))
    batch = replace(WORKS["three rows"], leaving=(leaving := Leaving()))
    asked = asyncio.create_task(collect(backend, batch))
    assert await asyncio.to_thread(stage.held.wait, LONG_S)
    leaving.withdraw()
    stage.over.set()
    assert {row.finish for row in await asked} == {Finish.CANCELLED}
    assert counts(backend) == (0, 0)
    await backend.close()


def empty(backend: LocalBackend) -> bool:
    """Nobody runs, waits, or holds a page."""

    def look(engine) -> bool:
        engine.check()
        return engine.alone and engine.pages.free == engine.plan.pages

    return backend._thread.call(look)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("injected"), RuntimeError("injected")])
@pytest.mark.parametrize("layer", [0, 3, LAYERS - 1])
async def test_a_step_that_fails_never_was(model, stages, truth, error, layer):
    """Out of memory or anything else, in any layer: the ordinary way goes on from there."""
    stage = await staged(model, stages)
    failures = [error]

    def fails(at: int) -> None:
        if at == layer and failures:
            raise failures.pop()

    stage.seen = fails
    backend = stage.backend(well)
    (row,) = await collect(backend, WORKS["generate"])
    right([row], truth["generate"])
    assert counts(backend) == (0, 1) and not failures
    assert not row.timing.brought.by_layer and row.timing.brought.miss == ""
    assert backend.metrics.snapshot().get("engine.steps_failed", 0) == 0
    assert await asyncio.to_thread(empty, backend)
    await backend.close()


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_the_tier_does_the_answer_is_right(model, stages, truth, seed):
    stage = await staged(model, stages)
    stage.over.set()
    backend = stage.backend(often(seed, 0.02 if seed % 2 else 0.2))
    for _ in range(3):
        (row,) = await collect(backend, WORKS["generate"])
        right([row], truth["generate"])
        await backend.forget([BOOK])
    await backend.close()


# --- when it is done at all ---


async def test_an_engine_that_is_busy_loads_in_order(model, stages, truth):
    """Rows that run would wait for the layers."""
    stage = await staged(model, stages)
    backend = stage.backend(well)
    runs = asyncio.Event()

    async def busy() -> None:
        long = RequestBatch(Generate(max_tokens=400, ignore_eos=True), ["Count."])
        async for _ in backend.submit(long):
            runs.set()

    running = asyncio.create_task(busy())
    await runs.wait()
    right(await collect(backend, WORKS["generate"]), truth["generate"])
    assert counts(backend) == (0, 0) or running.done()
    await running
    await backend.close()


async def test_rows_that_do_not_stand_behind_the_prefix_alone_are_submitted_as_ever(
    model, stages, truth
):
    """What they share beyond it is read first."""
    stage = await staged(model, stages)
    backend = stage.backend(well)
    long = "the same beginning of every question, which is as long as a prefix of its own " * 3
    batch = RequestBatch(ASK, [long + "a?", long + "b?"], (BOOK,))
    plain = LocalBackend(model, None, CONFIG)
    right(await collect(backend, batch), await collect(plain, replace(batch, reuse=False)))
    for one in (backend, plain):
        await one.close()
