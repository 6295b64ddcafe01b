from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.cli.plots import BOTTOM, LINE, TOP, apart, bar_plot, nice, number


@pytest.mark.parametrize(
    ("top", "least", "labels"),
    [
        (10.0, 0.0, "0 2 4 6 8 10"),
        (0.7, 0.0, "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7"),
        (3, 1.0, "0 1 2 3"),
        (1, 1.0, "0 1"),
        (9876, 1.0, "0 2,000 4,000 6,000 8,000 10,000"),
    ],
)
def test_ticks_are_round(top: float, least: float, labels: str) -> None:
    assert " ".join(number(v) for v in nice(top, least)) == labels


@given(st.floats(0, 1e12), st.sampled_from([0.0, 1.0]))
def test_ticks_reach_the_top_and_stay_few(top: float, least: float) -> None:
    ticks = nice(top, least)
    assert ticks[0] == 0
    assert ticks[-1] >= top * (1 - 1e-9)
    assert 2 <= len(ticks) <= 12
    assert ticks[1] >= least


@given(st.lists(st.floats(TOP, BOTTOM), max_size=5))
def test_labels_never_overlap_and_keep_their_order(heights: list[float]) -> None:
    placed = apart(heights)
    assert all(
        b - a >= LINE - 1e-9 for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False)
    )
    assert all(new >= old for new, old in zip(placed, heights, strict=True))
    order = sorted(range(len(heights)), key=lambda i: (heights[i], placed[i]))
    assert sorted(placed) == [placed[i] for i in order]


def test_bars_are_as_high_as_their_values() -> None:
    plot = bar_plot("t", "a", [("cached", 10, 4, "10"), ("bm25", 5, 0, "5")], top=10)
    cached, bm25 = plot.bars
    assert (cached.y, bm25.y) == (TOP, (TOP + BOTTOM) / 2)
    assert cached.part_y == BOTTOM - 0.4 * (BOTTOM - TOP)
    assert bm25.part_y == BOTTOM
    assert [tick.label for tick in plot.x_ticks] == ["cached", "bm25"]


def test_bars_of_nothing_lie_flat() -> None:
    assert {bar.y for bar in bar_plot("t", "a", [("cached", 0, 0, "0")]).bars} == {BOTTOM}
