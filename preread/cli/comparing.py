"""`preread compare`: the arms side by side, as a table, one JSON object and a page with plots."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from preread.cli.output import FAILURES, emit, note, table
from preread.cli.pages import check_place, page, write_page
from preread.cli.plots import (
    Line,
    Mark,
    Plot,
    Tick,
    across,
    apart,
    bar_plot,
    height,
    nice,
    number,
)

if TYPE_CHECKING:
    from preread.contexts.compared import Answer, ArmResult, Comparison

FAR = 10  # a break-even beyond this many times the questions asked is told, not drawn
POINTS = 200  # of a measured line


def compare_command(
    name: str, questions: Path, *, arms: str, html: Path | None, limit: int, top: int, json: bool
) -> None:
    """See `preread compare --help`. Everything the user can get wrong is said before the model is
    loaded. Exit code 3 when a question failed or the page could not be written."""
    from preread.app import open as open_engine
    from preread.cli.target import meant
    from preread.contexts.compare import CompareOptions, compare_arms, parse_arms
    from preread.contexts.questions import read_questions

    check_place(html)
    names = parse_arms(arms)
    asked = read_questions(questions)[: limit or None]
    _, model, codec = meant(name, "")
    with open_engine(model, codec=codec) as engine:
        settings = engine.config.context
        options = CompareOptions(
            arms=names,
            max_tokens=settings.max_tokens,
            shards=settings.route_shards,
            top=top,
            tell=note,
        )
        record = engine.open(name, on_note=note).opened.record
        comparison = engine.run(compare_arms(engine.backend, record, asked, options))
    report(comparison, html or Path(f"compare-{record.name}.html"), json=json)


def report(comparison: Comparison, path: Path, *, json: bool) -> None:
    """Write the page and print the rest. Raises SystemExit(3) when something failed."""
    written = write_page(path, render(comparison, datetime.now()))
    if json:
        emit({**comparison.to_json(), "html": written})
    else:
        _print(comparison)
        if written:
            note(f"page with plots: {path}")
    for arm in comparison.arms:
        for i, answer in enumerate(arm.answers, 1):
            if answer.error:
                note(f"{arm.name}, question {i} failed: {answer.error}")
    if not written or any(arm.failed for arm in comparison.arms):
        raise SystemExit(FAILURES)


def _print(comparison: Comparison) -> None:
    headers = ("arm", "build s", "TTFT s", "s/question", "all s")
    rows = [
        (
            arm.name,
            f"{arm.build_s:.3f}",
            f"{arm.ttft_s:.3f}",
            f"{arm.per_question_s:.3f}",
            f"{arm.total_s:.2f}",
            f"{arm.computed_tokens:,}",
            f"{arm.usage.cached_tokens:,}",
            f"{arm.usage.output_tokens:,}",
            _exact(arm),
        )
        for arm in comparison.arms
    ]
    print(headline(comparison))
    table((*headers, "computed", "cached", "output", "exact"), rows)
    for line in verdict(comparison):
        print(line)
    if agreement := comparison.agreement:
        cached, incontext = _pair(comparison)
        for i in agreement.differing:
            print(f"  {i + 1}. {comparison.questions[i].text}")
            print(f"     cached: {_said(cached.answers[i])}")
            print(f"     incontext: {_said(incontext.answers[i])}")


def headline(comparison: Comparison) -> str:
    """What was compared, in one line."""
    record, backend = comparison.record, comparison.backend
    shards = f" in {len(record.shards)} shards" if len(record.shards) > 1 else ""
    asked = len(comparison.questions)
    return (
        f"{record.name} version {record.version}: {asked:,} question{'' if asked == 1 else 's'}, "
        f"{record.tokens:,} context tokens{shards}, {backend.model} on {backend.device}"
    )


def verdict(comparison: Comparison) -> list[str]:
    """Sentences: break-even against each arm, and whether law 1 held."""
    lines = [b.describe() for b in comparison.break_even]
    if agreement := comparison.agreement:
        lines.append(
            f"cached and incontext gave the same answer to {agreement.equal:,} of "
            f"{len(comparison.questions):,} questions"
            + (f"; differing: {len(agreement.differing):,}." if agreement.differing else ".")
        )
    return lines


def _pair(comparison: Comparison) -> tuple[ArmResult, ArmResult]:
    by_name = {arm.name: arm for arm in comparison.arms}
    return by_name["cached"], by_name["incontext"]


def _exact(arm: ArmResult) -> str:
    return f"{arm.correct} of {arm.graded}" if arm.graded else "-"


def _said(answer: Answer) -> str:
    return f"failed: {answer.error}" if answer.error else answer.text


# ---- the page ----


def render(comparison: Comparison, when: datetime) -> str:
    """The page; foreign text is escaped."""
    return page(
        "compare",
        headline=headline(comparison),
        name=comparison.record.name,
        when=when,
        verdict=verdict(comparison),
        arms=comparison.arms,
        plots=list(plots(comparison)),
        rows=[
            (question, [arm.answers[i] for arm in comparison.arms])
            for i, question in enumerate(comparison.questions)
        ],
    )


def plots(comparison: Comparison) -> Iterator[Plot]:
    """Seconds by number of questions, tokens computed, and, if anything was graded, accuracy."""
    arms = comparison.arms
    yield _seconds(comparison)
    yield bar_plot(
        "Tokens computed",
        "Read by the model for all questions; the pale part is the build.",
        [(a.name, a.computed_tokens, a.build_tokens, f"{a.computed_tokens:,}") for a in arms],
    )
    if any(arm.graded for arm in arms):
        yield bar_plot(
            "Right answers",
            "Exact match: case, white space, final punctuation and surrounding quotes apart.",
            [(a.name, a.correct, 0, _exact(a)) for a in arms],
            top=max(arm.graded for arm in arms),
        )


def _seconds(comparison: Comparison) -> Plot:
    arms, asked = comparison.arms, len(comparison.questions)
    near = [b for b in comparison.break_even if b.questions and b.questions <= FAR * asked]
    x_top = max(asked, *(math.ceil(1.25 * (b.questions or 0)) for b in near), 1)
    y_top = max(max(a.build_s + x_top * a.per_question_s, a.total_s) for a in arms)
    xs, ys = nice(x_top, least=1.0), nice(y_top)

    def x(n: float) -> float:
        return across(n, x_top)

    def y(seconds: float) -> float:
        return height(seconds, ys[-1])

    ends = [y(a.build_s + x_top * a.per_question_s) for a in arms]
    lines = [
        Line(a.name, f"{x(0)},{y(a.build_s)} {x(x_top)},{end}", a.name, label_y)
        for a, end, label_y in zip(arms, ends, apart(ends), strict=True)
    ]
    for arm in arms:
        spent = list(accumulate((a.seconds for a in arm.answers), initial=arm.build_s))
        some = range(0, asked + 1, math.ceil(asked / POINTS))
        lines.append(Line(arm.name, " ".join(f"{x(n)},{y(spent[n])}" for n in some)))
    marks = [
        Mark(x(n), y(b.cached.build_s + n * b.cached.per_question_s), f"{b.other.name}: {n:,}")
        for b in near
        if (n := b.questions)
    ]
    return Plot(
        "Seconds by number of questions",
        "Build included. Drawn through: build and median; dotted: as measured; circle: break-even.",
        tuple(Tick(y(v), number(v)) for v in ys),
        tuple(Tick(x(v), number(v)) for v in xs if v <= x_top),
        tuple(lines),
        marks=tuple(marks),
    )
