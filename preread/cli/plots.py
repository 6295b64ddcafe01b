"""Plots as plain numbers, for a template to draw as SVG: places are in units of one view box, 720 x
300, y downwards. No script, no plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEFT, RIGHT, TOP, BOTTOM = 90.0, 610.0, 24.0, 260.0  # of every plot, in a view box of 720 x 300
LINE = 14.0  # least distance of two labels
ARMS = ("cached", "incontext", "bm25")  # colours that the style sheet knows


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, in units of the view box."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """points: of an SVG polyline; label_y: where its name stands, right of the plot; "" as name of
    the label: none."""

    arm: str
    points: str
    label: str = ""
    label_y: float = 0.0


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle from y to the bottom of the plot; `part` of its height, from below, is shown as
    the build's."""

    arm: str
    x: float
    y: float
    width: float
    part_y: float
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A point worth naming."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure; about: what it shows, in words."""

    title: str
    about: str
    y_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    marks: tuple[Mark, ...] = ()


def bar_plot(
    title: str, about: str, values: Sequence[tuple[str, int, int, str]], top: int = 0
) -> Plot:
    """One bar per value: (arm, height, part of it from below, label). top: least length of axis."""
    ys = nice(max(top, *(v[1] for v in values), 1), least=1.0)
    step = (RIGHT - LEFT) / len(values)
    width = min(120.0, step / 2)
    centers = [LEFT + step * (i + 0.5) for i in range(len(values))]
    bars = (
        Bar(
            arm,
            round(center - width / 2, 1),
            height(size, ys[-1]),
            round(width, 1),
            height(part, ys[-1]),
            label,
        )
        for center, (arm, size, part, label) in zip(centers, values, strict=True)
    )
    return Plot(
        title,
        about,
        tuple(Tick(height(v, ys[-1]), number(v)) for v in ys),
        tuple(Tick(round(c, 1), v[0]) for c, v in zip(centers, values, strict=True)),
        bars=tuple(bars),
    )


def line_plot(
    title: str, about: str, lines: Sequence[tuple[str, Sequence[float]]], counts: Sequence[int],
    chosen: tuple[float, float, str] | None = None,
) -> Plot:  # fmt: skip
    """Lines over numbers of sequences, each twice the one before: one step to the right is a
    doubling. lines: (name, a value for each count); chosen: (count, value, label) of a mark."""
    ys = nice(max(max(values) for _, values in lines))
    steps = max(math.log2(counts[-1] / counts[0]), 1e-9)

    def x(count: float) -> float:
        return across(math.log2(count / counts[0]), steps)

    ends = [height(values[-1], ys[-1]) for _, values in lines]
    drawn = [
        Line(
            ARMS[i % len(ARMS)],
            " ".join(f"{x(n)},{height(v, ys[-1])}" for n, v in zip(counts, values, strict=True)),
            name,
            label_y,
        )
        for i, ((name, values), label_y) in enumerate(zip(lines, apart(ends), strict=True))
    ]
    return Plot(
        title,
        about,
        tuple(Tick(height(v, ys[-1]), number(v)) for v in ys),
        tuple(Tick(x(n), number(n)) for n in counts),
        tuple(drawn),
        marks=(Mark(x(chosen[0]), height(chosen[1], ys[-1]), chosen[2]),) if chosen else (),
    )


def text_bars(rows: Sequence[tuple[str, float, str]], width: int = 40) -> list[str]:
    """A plot for a terminal, a line per (name, value, text); the longest bar has `width` cells, and
    eighths of a cell count."""
    names, most = max(len(r[0]) for r in rows), max(r[1] for r in rows) or 1.0
    lines = []
    for name, value, text in rows:
        full, part = divmod(round(8 * width * value / most), 8)
        bar = "█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")
        lines.append(f"{name.rjust(names)} {bar} {text}")
    return lines


def across(value: float, top: float) -> float:
    """x of a value on an axis from 0 to `top`."""
    return round(LEFT + (RIGHT - LEFT) * value / top, 1)


def height(value: float, top: float) -> float:
    """y of a value on an axis from 0 to `top`."""
    return round(BOTTOM - (BOTTOM - TOP) * value / top, 1)


def nice(top: float, least: float = 0.0) -> list[float]:
    """0 and four to eight round steps of at least `least`, the last at or above `top`."""
    rough = max(top / 4, least, 1e-6)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = max(unit * max(m for m in (1, 2, 5) if m * unit <= rough * (1 + 1e-9)), least)
    return [i * step for i in range(max(1, math.ceil(top / step - 1e-9)) + 1)]


def number(value: float) -> str:
    """2500.0 -> '2,500'."""
    return f"{value:,.10g}"


def apart(heights: Iterable[float]) -> list[float]:
    """The same heights, moved down until no two labels overlap."""
    given = list(heights)
    placed = [0.0] * len(given)
    last = -LINE
    for i in sorted(range(len(given)), key=given.__getitem__):
        last = placed[i] = max(given[i], last + LINE)
    return placed
