"""Loading by layer is loading in another order: the same prefix comes whatever is broken, and
nothing is said to be there before it is there and verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.store.keys import Box, Geometry
from preread.store.loading import Found
from preread.store.policy import LEAST_S, Choice, Patience, saved_by_layer
from preread.store.rates import Prefill, Rates, Slowed
from preread.store.reports import LoadReport
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Outcome, Room, fresh
from preread.store.tiers.memory import MemoryTier
from preread.testing.faulty import FaultyTier, Trouble
from tests.attacks.tools import FINGERPRINT, Truth

TOKENS = tuple(range(100, 129))  # four spans, of 8, 8, 8 and 5
SPANS = 4
HEADS = Geometry(5, 2, 4, "float32", 8, 272 + 2 * 8 * 4 * 4)  # a head of a layer in each box
WHOLE = Geometry(5, 2, 4, "float32", 8, 272 + 2 * 2 * 8 * 4 * 4 * 2)  # up to two layers
ONE = Geometry(5, 2, 4, "float32", 8)
GEOMETRIES = {"heads": HEADS, "layers": WHOLE, "one box": ONE}


class Spoilt(MemoryTier):
    """Keeps everything for ever; some of it is bad, some not there when it is read."""

    bad: frozenset[ChunkKey] = frozenset()
    missing: frozenset[ChunkKey] = frozenset()

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        for key in keys:
            if key in self.missing:
                yield None
            elif key in self.bad:
                (value,) = super().read([key])
                assert isinstance(value, memoryview)
                spoilt = bytearray(value)
                spoilt[300] ^= 1
                yield memoryview(spoilt)
            else:
                yield from super().read([key], room)

    def remove(self, keys: Sequence[ChunkKey], *, quarantine: bool = False) -> int:
        return len(keys)


class Bench:
    """A tier that holds all chunks of one geometry. told: what the load by layer said, checked."""

    def __init__(self, geometry: Geometry) -> None:
        self.truth = Truth.of(geometry, len(TOKENS))
        self.tier = Spoilt(name="ram")
        self.rates = Rates()
        store = Store([self.tier], geometry, FINGERPRINT)
        assert store.save(TOKENS, 0, self.truth.source).stored
        self.keys = [ChunkKey(bytes.fromhex(key)) for key in store.keys(TOKENS)]
        self.cells = len(geometry.cells)
        self.told: list[int] = []
        self.start = 0

    def load(self, *, by_layer: bool, start: int = 0, tier=None) -> LoadReport:
        truth = self.truth
        truth.clear()
        self.told, self.start = [], start
        # A store of its own: what it has seen to be bad it does not read again.
        store = Store([tier or self.tier], truth.geometry, FINGERPRINT, rates=self.rates)
        return store.load(
            TOKENS, len(TOKENS), truth.sink, start=start, place=truth.place,
            layers=self.tell if by_layer else None,
        )  # fmt: skip

    def tell(self, layers: int) -> None:
        self.told.append(layers)
        for box in self.boxes():
            if box.layer_end <= layers and box.token_end > self.start:
                self.there(box)

    def boxes(self, upto: int = len(TOKENS)) -> list[Box]:
        spans = [(a, min(a + 8, len(TOKENS))) for a in range(0, upto, 8)]
        return [box for a, b in spans for box in self.truth.geometry.boxes(a, b)]

    def there(self, box: Box) -> None:
        a, b, i, j, g, h = box
        truth, here = self.truth, (slice(i, j), slice(None), slice(g, h), slice(a, b))
        placed = truth.placed(box) and torch.equal(truth.arena[here], truth.kv[here])
        assert placed or box in truth.boxes, f"{box} is not there"


@pytest.fixture(params=GEOMETRIES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(GEOMETRIES[request.param])


@pytest.mark.parametrize("start", [0, 3, 8, 21, 28])
def test_all_of_it_comes_layers_first(bench: Bench, start: int) -> None:
    by_span = bench.load(by_layer=False, start=start)
    assert not bench.told
    report = bench.load(by_layer=True, start=start)
    assert report.tokens == by_span.tokens == len(TOKENS) and report.end is None
    assert (report.loaded, report.nbytes) == (by_span.loaded, by_span.nbytes)
    assert report.loaded == len(TOKENS) - start
    ends = sorted({box.layer_end for box in bench.boxes()})
    assert bench.told == ends and ends[-1] == bench.truth.geometry.layers
    assert len(ends) == bench.truth.geometry.layer_groups


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(list(GEOMETRIES)))
def test_the_same_prefix_comes_whatever_is_broken(data: st.DataObject, name: str) -> None:
    bench = Bench(GEOMETRIES[name])
    some = st.frozensets(st.sampled_from(bench.keys), max_size=3)
    bench.tier.bad, bench.tier.missing = data.draw(some), data.draw(some)
    want = bench.load(by_layer=False)
    report = bench.load(by_layer=True)
    assert report.tokens == want.tokens == report.loaded
    for box in bench.boxes(report.tokens):
        bench.there(box)
    lost = [n for n, key in enumerate(bench.keys) if key in bench.tier.bad | bench.tier.missing]
    assert report.tokens == (min(lost) // bench.cells * 8 if lost else len(TOKENS))
    assert (report.end is None) == (not lost)
    # No layer was told of that a bad box holds a part of.
    whole = {bench.boxes()[n].layer_start for n in lost}
    assert all(layers <= min(whole, default=inf) for layers in bench.told)
    if report.end is not None:
        assert report.end.token == report.tokens


@pytest.mark.parametrize("n", [0, 1, 7, 20, 39])
def test_a_tier_that_fails_leaves_what_was_whole(n: int) -> None:
    """Nothing before the last layers; the spans whose last box came, from then on."""
    bench = Bench(HEADS)  # 40 boxes, those of the last round are the last four
    plan = {("read", n): Trouble.RAISE}
    dead = FaultyTier(
        bench.tier, lambda m, i: Trouble.RAISE if m == "find" and i else plan.get((m, i))
    )
    report = bench.load(by_layer=True, tier=dead)
    assert report.tokens == max(0, n - 36) * 8
    assert report.end is not None and report.end.reason == "tier_failed"
    assert report.end.token == report.tokens


def test_a_load_by_layer_that_goes_too_slowly_is_given_up() -> None:
    """By how much of it has come: no token is whole before the end."""
    patience = Patience(0, 1000, Prefill(0.0, 1e-3, 0.0))
    assert not patience.ends(0, 0.02, 0.01)  # the first layers: what comes once is not the rest
    assert not patience.ends(0, 0.09, 0.02)  # it has hardly begun
    assert patience.ends(0, 0.11, 0.05) and not patience.ends(0, 0.11, 0.1)
    assert not patience.ends(0, 0.99, 0.9) and patience.ends(0, 1.01, 0.999)
    assert Patience(0, 8, Prefill(0.0, 1e-6, 0.0)).deadline_s == LEAST_S


def test_what_is_saved_is_what_goes_on_at_once() -> None:
    none = Slowed()
    assert saved_by_layer(1.0, 0.5, 1, none) == 0.0
    assert saved_by_layer(1.0, 0.5, 2, none) == saved_by_layer(0.5, 1.0, 2, none) == 0.25
    assert saved_by_layer(1.0, 1.0, 10, Slowed(1.5, 1.0)) == pytest.approx(0.45)
    assert saved_by_layer(1.0, 1.0, 10, Slowed(1.0, 2.5)) == 0.0


def chosen(geometry: Geometry, load_s: float, tail: int, *, token_s: float = 1e-3, **choice):
    """Whether a load of all that is foreseen to take so long goes by layer."""
    bench = Bench(geometry)
    for n in (8, 64, 512):
        bench.rates.computed(0, n, n * token_s)
    store = Store([bench.tier], geometry, FINGERPRINT, rates=bench.rates)
    found = store.find(TOKENS)
    wanted = Choice(len(TOKENS), load_s, 1.0)._replace(**choice)
    return store.by_layer(found, wanted, tail)


def test_it_is_done_where_it_pays() -> None:
    assert chosen(HEADS, 0.02, 20) and chosen(WHOLE, 0.02, 20)
    assert not chosen(ONE, 0.02, 20), "one box holds all layers"
    assert not chosen(HEADS, 0.0, 20), "nothing is foreseen"
    assert not chosen(HEADS, 10.0, 20) and not chosen(HEADS, 0.02, 20_000), "hardly anything saved"
    assert not chosen(HEADS, 0.02, 20, upto=24), "a part of it is computed"
    assert not chosen(HEADS, 0.02, 20, meets=8), "it is computed meanwhile"


def test_it_is_not_done_where_computing_was_never_measured() -> None:
    bench = Bench(HEADS)
    store = Store([bench.tier], HEADS, FINGERPRINT)
    assert not store.by_layer(store.find(TOKENS), Choice(len(TOKENS), 0.02, inf), 20)
    empty = Found((), 0, {}, (), None)
    assert not store.by_layer(empty, Choice(0, 0.0, 0.0), 20)
