"""Hits that do not show: whoever is answered from what another has stored is told, and waits, as if
nobody had. Time is a clock that each step of the decoder moves on; nothing is waited for."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest

from preread.backend import RequestBatch
from preread.blends import Blend
from preread.contexts.rows import collect
from preread.engine.caller import Caller
from preread.engine.hiding import LEAST_S, MARGIN, Hiding
from preread.engine.local import LocalBackend
from preread.errors import RequestError
from preread.metrics import Metrics
from preread.models.load import LoadedModel, load_model
from preread.store.rates import Prefill, Rates
from preread.store.tiers.memory import MemoryTier
from preread.testing.models import write_tiny_model
from preread.testing.questions import BOOK, QUESTIONS, SHORT
from preread.types import Brought, Built, Completion, Prefix
from tests.engine.test_local import CONFIG, store_of


class Ticking:
    """A decoder and a clock: each step takes so many seconds of it."""

    def __init__(self, decoder, each: float) -> None:
        self._decoder, self._each = decoder, each
        self.now, self.steps = 0.0, 0

    def __getattr__(self, name: str):
        return getattr(self._decoder, name)

    def hidden(self, tokens, positions, attend):
        self.now, self.steps = self.now + self._each, self.steps + 1
        return self._decoder.hidden(tokens, positions, attend)


class Known(Rates):
    """A second for each token; None: nobody knows."""

    def __init__(self, rate: Prefill | None) -> None:
        super().__init__()
        self._rate = rate

    def prefill(self) -> Prefill | None:
        return self._rate

    def computed(self, start: int, end: int, seconds: float, **_) -> None: ...


class Nobody:
    """Claims: whoever asks for one has shown itself."""

    def take(self, key: str, ttl_s: float) -> bool:
        raise AssertionError("a claim")

    def drop(self, key: str) -> None:
        raise AssertionError("a claim")


class Told(NamedTuple):
    """All that a caller of a process is told; at: when, by the clock."""

    built: Built
    rows: list[Completion]
    counters: dict[str, float]
    at: tuple[float, ...]
    steps: int


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = write_tiny_model(tmp_path_factory.mktemp("hiding") / "tiny", "qwen3")
    return load_model(str(folder), dtype="float32", device="cpu")


async def told(
    model: LoadedModel, tier: MemoryTier, monkeypatch: pytest.MonkeyPatch, *,
    hides: bool = True, rate: Prefill | None = Prefill(0.0, 1.0, 0.0), first: str = "build",
) -> Told:  # fmt: skip
    """Of a new process on that tier: a context is built and asked, or asked and built."""
    ticking = Ticking(model.decoder, 3.0)
    store = store_of(model, tier, rates=Known(rate), tenant="library", shared=True)
    backend = LocalBackend(
        replace(model, decoder=ticking), store, CONFIG, Metrics(), hides=hides,
        claims=Nobody() if hides else None,
    )  # fmt: skip
    if hides:
        backend._builder._hiding = Hiding(store, lambda: ticking.now)

    def pause(self: Caller, seconds: float, reading: object) -> None:
        ticking.now += seconds

    monkeypatch.setattr(Caller, "pause", pause)
    batch, at = RequestBatch(SHORT, list(QUESTIONS), (BOOK,)), []
    rows: list[Completion] = []
    if first == "ask":
        rows = await collect(backend, batch)
        at.append(ticking.now)
    built = await backend.build(BOOK)
    at.append(ticking.now)
    if first == "build":
        rows = await collect(backend, batch)
        at.append(ticking.now)
    counters = backend.metrics.snapshot()
    await backend.close()
    timeless = [replace(row, timing=replace(row.timing, ttft_ms=0, total_ms=0)) for row in rows]
    return Told(built, timeless, counters, tuple(at), ticking.steps)


@pytest.mark.parametrize("first", ["build", "ask"])
async def test_a_hit_is_told_and_takes_as_long_as_a_miss(model, monkeypatch, first) -> None:
    tier = MemoryTier()
    miss = await told(model, tier, monkeypatch, first=first)
    assert tier.usage().chunks
    hit = await told(model, tier, monkeypatch, first=first)
    assert hit.steps < miss.steps, "it was a hit: nothing of the context was computed"
    assert hit._replace(steps=0) == miss._replace(steps=0)
    tokens = hit.built.tokens
    if first == "build":
        assert (hit.built.computed_tokens, hit.built.loaded_tokens) == (tokens, 0)
        assert hit.at[0] == hit.built.seconds == MARGIN * tokens + LEAST_S
    else:
        assert hit.rows[0].usage.computed_tokens > tokens
    assert {row.timing.load_ms for row in hit.rows} == {0}
    assert hit.built.brought == Brought()


async def test_without_it_everything_differs(model, monkeypatch) -> None:
    """The measure is not blind."""
    for first, names in ("build", ("built", "counters", "at")), ("ask", ("rows", "counters", "at")):
        tier = MemoryTier()
        miss = await told(model, tier, monkeypatch, hides=False, first=first)
        hit = await told(model, tier, monkeypatch, hides=False, first=first)
        for name in names:
            assert getattr(hit, name) != getattr(miss, name), name


async def test_where_nobody_knows_what_computing_takes_nothing_is_loaded(
    model, monkeypatch
) -> None:
    tier = MemoryTier()
    miss = await told(model, tier, monkeypatch, rate=None)
    hit = await told(model, tier, monkeypatch, rate=None)
    assert hit == miss, "not even fewer steps"


async def test_what_is_in_memory_is_answered_at_once(model, monkeypatch) -> None:
    """It is there because this process was asked for it: nobody else shows."""
    tier = MemoryTier()
    told_ = await told(model, tier, monkeypatch)
    built, asked = told_.at
    assert asked - built < 100, "steps of the questions alone"


async def test_nothing_is_put_together_from_parts(model) -> None:
    backend = LocalBackend(model, store_of(model), CONFIG, hides=True)
    with pytest.raises(RequestError, match="constant_time"):
        await backend.build(Prefix(BOOK.system, blend=Blend((BOOK.system,), 0.1)))
    await backend.close()
