from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.store.fit import fit
from preread.store.rates import LATEST, SAVE_EVERY_S, SIZES, Pace, Prefill, Rates
from preread.testing.conformance_tier import Clock


class Notes:
    """A memory as a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[str, list[list[float]]] = {}
        self.writes = 0

    def get(self, key: str) -> list[list[float]]:
        return self.rows.get(key, [])

    def keep(self, key: str, rows: list[list[float]]) -> None:
        self.rows[key] = rows
        self.writes += 1


# --- the fit ---


@given(
    st.floats(0, 1).map(lambda x: x * 1e-2),
    st.floats(1e-11, 1e-6),
    st.lists(st.integers(1000, 10**9), min_size=3, max_size=20, unique=True),
)
def test_exact_measurements_give_the_line(fixed: float, per_byte: float, sizes: list[int]) -> None:
    seconds = [fixed + n * per_byte for n in sizes]
    found = fit([[n, 1.0] for n in sizes], seconds)
    for n, true in zip(sizes, seconds, strict=True):
        assert found[0] * n + found[1] == pytest.approx(true, rel=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_as_good_as_any_line_on_a_grid(seed: int) -> None:
    """The slow twin: every line of a fine grid. A third of the measurements is wild."""
    draw = random.Random(seed)
    sizes = [draw.uniform(1, 100) for _ in range(24)]
    seconds = [
        (2 + 0.1 * n) * draw.lognormvariate(0, 0.03) * (draw.uniform(2, 9) if k % 3 == 0 else 1)
        for k, n in enumerate(sizes)
    ]

    def error(slope: float, base: float) -> float:
        pairs = zip(sizes, seconds, strict=True)
        logs = (math.log(s / (slope * n + base)) for n, s in pairs)
        return sum(0.35 * e if e > 0 else -0.65 * e for e in logs) / len(sizes)

    grid = itertools.product([k / 400 for k in range(1, 80)], [k / 20 for k in range(100)])
    found = fit([[n, 1.0] for n in sizes], seconds)
    assert error(*found) <= min(error(*line) for line in grid) * 1.05
    for n in (20, 50, 100):
        assert found[0] * n + found[1] == pytest.approx(2 + 0.1 * n, rel=0.25)


def test_of_equal_fits_the_simpler_one() -> None:
    assert fit([[100.0, 1.0]] * 3, [5.0] * 3) == (pytest.approx(0.05), 0.0)
    assert fit([[1.0, 1.0], [100.0, 1.0]], [5.0, 5.0])[1] == pytest.approx(5.0, rel=0.01)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(1e-6, 1e3)), min_size=1, max_size=12))
def test_nothing_takes_less_than_no_time(points: list[tuple[float, float]]) -> None:
    found = fit([[n, n * n, 1.0] for n, _ in points], [s for _, s in points])
    assert min(found) >= 0 and max(found) > 0


# --- what is measured ---


def test_nothing_is_known_at_first() -> None:
    rates = Rates()
    assert rates.pace("disk") is rates.prefill() is None
    assert rates.age_s("disk") == float("inf")
    rates.loaded("disk", 0, 1, 1.0)
    rates.loaded("disk", 10, 1, 0.0)
    rates.computed(5, 5, 1.0)
    assert rates.pace("disk") is rates.prefill() is None


def test_each_tier_by_itself() -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    for n in (1, 10, 50):
        rates.loaded("disk", n * 10**6, n, 0.001 + n * 0.001)
        clock.tick(5)
        rates.loaded("redis", n * 10**6, n, 0.02 + n * 0.01)
    assert rates.pace("disk") == (pytest.approx(0.001), pytest.approx(1e-9), 0.0, 10**6)
    assert rates.pace("redis") == (pytest.approx(0.02), pytest.approx(1e-8), 0.0, 10**6)
    assert rates.age_s("disk") == 5 and rates.age_s("redis") == 0
    assert Pace(0.5, 1e-3, 0.1).seconds(1000, 3) == 1.8


def test_tokens_cost_more_the_more_came_before() -> None:
    true, rates = Prefill(0.01, 1e-3, 1e-7), Rates()
    for start in range(0, 32_000, 2048):
        rates.computed(start, start + 2048, true.seconds(start, start + 2048))
    rates.computed(0, 100, true.seconds(0, 100))
    found = rates.prefill()
    assert found is not None
    for start, end in ((0, 300), (100, 20_000), (30_000, 64_000)):
        assert found.seconds(start, end) == pytest.approx(true.seconds(start, end), rel=0.03)
    assert true.seconds(7, 7) == 0


def test_a_tier_that_changes_is_believed_within_some_loads() -> None:
    rates = Rates()
    for _ in range(50):
        rates.loaded("redis", 10**7, 5, 0.01)
    for _ in range(LATEST - 1):
        rates.loaded("redis", 10**7, 5, 1.0)
    pace = rates.pace("redis")
    assert pace is not None and pace.seconds(10**7, 5) > 0.5


def test_what_is_done_once_is_not_counted_for_ever() -> None:
    """The first of a size is what is known; the second is believed in its place."""
    rates = Rates()
    rates.computed(0, 1000, 3.0)
    assert rates.prefill().seconds(0, 1000) == pytest.approx(3.0)  # type: ignore[union-attr]
    rates.computed(0, 1000, 0.04)
    assert rates.prefill().seconds(0, 1000) == pytest.approx(0.04)  # type: ignore[union-attr]
    rates.computed(0, 1000, 0.05)
    assert 0.04 <= rates.prefill().seconds(0, 1000) < 0.051  # type: ignore[union-attr]


def test_the_first_step_of_a_process_stands_for_nothing() -> None:
    """It compiles programs. Else two steps of which the shorter took longer say that any number of
    tokens takes as long."""
    rates = Rates()
    rates.computed(0, 1016, 3.6)
    for start in range(0, 8192, 2048):
        rates.computed(start, start + 2048, 0.06)
    found = rates.prefill()
    assert found is not None and found.seconds(0, 1024) < 0.07
    assert found.seconds(0, 16_384) == pytest.approx(8 * 0.06, rel=0.02)


def test_more_tokens_than_any_step_had_take_several_steps() -> None:
    """However what a step takes is divided between the step and its tokens."""
    rates = Rates()
    for start, seconds in ((0, 9.9), (0, 0.05), (2048, 0.06), (4096, 0.055), (6144, 0.06)):
        rates.computed(start, start + 2048, seconds)
    found = rates.prefill()
    assert found is not None and found.most == 2048
    assert 0.4 < found.seconds(0, 16_384) < 0.9
    assert found.times(2).seconds(0, 16_384) == pytest.approx(2 * found.seconds(0, 16_384))
    assert Prefill(0.06, 0.0, 0.0).seconds(0, 16_384) == 0.06  # nothing is known of steps


def test_little_is_kept() -> None:
    rates = Rates(notes := Notes())
    for n in range(1, 40):
        for _ in range(20):
            rates.loaded("disk", 1 << n, 1, 1.0)
    rates.save()
    assert len(notes.rows["tier/disk"]) == LATEST * SIZES


# --- and remembered ---


def test_what_was_measured_is_known_to_the_next_process() -> None:
    clock, notes = Clock(), Notes()
    rates = Rates(notes, clock=clock)
    for n in (1, 10, 50):
        rates.loaded("disk", n * 10**6, n, 0.001 + n * 0.001)
        rates.computed(0, n, n * 0.5)
    rates.save()
    rates.save()  # nothing new
    assert notes.writes == 2 and set(notes.rows) == {"tier/disk", "prefill"}
    clock.tick(100)
    again = Rates(notes, clock=clock)
    assert again.pace("disk") == rates.pace("disk") and again.prefill() == rates.prefill()
    assert again.age_s("disk") == 100
    for _ in range(20):  # and what is new outweighs it
        again.loaded("disk", 10**7, 5, 1.0)
    pace = again.pace("disk")
    assert pace is not None and pace.seconds(10**7, 5) == pytest.approx(1.0, rel=0.01)


BAD = (
    [], [1.0], [0.0, 0.0, 2.0, 5.0], [5.0, 1.0, 0.0, 5.0], [math.nan, 1.0, 1.0, 1.0],
    [math.inf] * 4, [1.0] * 5, [1.0] * 3,
)  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_damaged_measurement_is_none(bad: list[float]) -> None:
    notes = Notes()
    notes.rows = {
        "tier/disk": [bad, [100.0, 1.0, 2.0, 5.0]],
        "prefill": [bad, [0.0, 10.0, 2.0, 5.0]],
    }
    rates = Rates(notes)
    pace, prefill = rates.pace("disk"), rates.prefill()
    assert pace is not None and pace.seconds(100, 1) == pytest.approx(2.0)
    assert prefill is not None and prefill.seconds(0, 10) == pytest.approx(2.0)


def test_it_is_saved_now_and_then() -> None:
    clock, notes = Clock(), Notes()
    rates = Rates(notes, clock=clock)
    rates.loaded("disk", 10, 1, 1.0)
    assert notes.writes == 0
    clock.tick(SAVE_EVERY_S)
    rates.loaded("disk", 10, 1, 1.0)
    assert notes.writes == 1
