"""`preread score`: labels for the rows of a table."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from preread.batch.forms import Form, TableRows
from preread.batch.forms import labelled as with_label
from preread.batch.journal import Journal
from preread.batch.report import Report
from preread.batch.score import Question, Scoring, labelled, read_questions, scaled
from preread.batch.scored import Scored
from preread.batch.template import RowTable, Template, shown
from preread.cli.batching import Batch, Open, Options, model_of, opener, read_text
from preread.cli.output import emit, note
from preread.cli.pages import page, write_page
from preread.cli.plots import Plot, Tick, bar_plot
from preread.config import load_config
from preread.errors import RequestError

LONGEST = 120  # characters of a cell on the page


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says. format: auto, csv, …"""

    inputs: Sequence[str]
    rubric: Path | None
    labels: str
    scale: str
    questions: Path | None
    item: str
    format: str
    model: str
    calibrate: bool
    check_position: bool
    html: Path | None


class Outcome(NamedTuple):
    """code: the exit code; report: None of a dry run; page: where it was written."""

    code: int
    report: Report | None
    scored: Scored
    page: str | None


def score_command(asked: Asked, options: Options) -> None:
    """See `preread score --help`."""
    quiet = options.json and not options.dry_run
    told = replace(options, json=options.json and options.dry_run, quiet=quiet)
    code, report, scored, written = run_score(asked, told, opener(options.backend, options.cache))
    if options.dry_run:
        return
    if options.json and report:
        bill = report.to_json() | {"rows": scored.rows, "rows_failed": scored.failed}
        emit(bill | {"questions": scored.to_json(), "output": str(options.output), "html": written})
    elif scored.rows:
        _tell(scored, written)
    if code:
        raise SystemExit(code)


def run_score(asked: Asked, options: Options, open: Open) -> Outcome:
    """Score the rows of a table into a file and a page."""
    if asked.format == "openai":
        raise RequestError(
            "--format openai: batch lines are whole requests; what is scored are rows.",
            hint="Give --format jsonl for rows of that kind.",
        )
    html = asked.html or options.output.with_suffix(".html")
    reads = tuple(path for path in (asked.rubric, asked.questions) if path)
    options = replace(options, page=html, reads=reads)
    if load_config().responses.embeddings:
        raise RequestError(
            "The semantic cache serves no scores.",
            hint="Unset responses.embeddings; --cache keeps answers to equal requests.",
        )
    rubric = read_text(asked.rubric, "--rubric") if asked.rubric else ""
    model = model_of(asked.model, options.backend)
    scoring = Scoring(
        _questions(asked), model, rubric, calibrate=asked.calibrate,
        check_position=asked.check_position,
    )  # fmt: skip
    columns, scored = scoring.columns(), Scored(scoring)
    added, cells = (
        with_label(columns, scored.cells) if options.labels_responses else (columns, scored.cells)
    )
    table = RowTable(
        asked.inputs, list(scoring.asks()), Template(asked.item),
        format="" if asked.format == "auto" else asked.format, reserved=added,
        fixed=scoring.fixed,
    )  # fmt: skip

    def form(journal: Journal) -> Form:
        scoring.prepare(journal)
        scored.begin()
        given = json_module.loads(journal.get("columns"))
        files = json_module.loads(journal.get("files"))
        return TableRows(options.output.suffix, given, added, cells, files)

    TableRows(options.output.suffix, [], added, cells, [])  # a suffix that can be had
    code, report = Batch(table, options, form, open).run()
    written = write_page(html, _page(scored, asked)) if scored.rows else None
    return Outcome(code, report, scored, written)


def _questions(asked: Asked) -> list[Question]:
    given = [bool(asked.labels), bool(asked.scale), bool(asked.questions)]
    if sum(given) != 1:
        raise RequestError(
            "What are the rows scored by?",
            hint="Give one of --labels A,B, --scale 1-5, --questions.",
        )
    if asked.questions:
        return read_questions(asked.questions)
    return [labelled(asked.labels) if asked.labels else scaled(asked.scale)]


def _tell(scored: Scored, written: str | None) -> None:
    for value in scored.to_json():
        counts = " · ".join(f"{name} {n:,}" for name, n in value["counts"].items() if n)
        name = f"{value['name']}: " if value["name"] else ""
        agreement = value.get("agreement")
        agree = "" if agreement is None else f" · {agreement:.1%} the same with the labels turned"
        mass = value["mass"]
        note(f"  {name}{counts} · the labels hold {mass:.1%} of the probability{agree}"
             if mass is not None else f"  {name}no row was scored")  # fmt: skip
    if written:
        note(f"page: {written}")


def _page(scored: Scored, asked: Asked) -> str:
    """See assets/score.html.jinja."""
    top = scored.top()
    given = [json_module.loads(cells.pop("carry")) for cells in top]
    headers = list(dict.fromkeys(name for row in given for name in row))
    added = [name for name in scored.scoring.columns() if name != "error"]
    rows = [
        [_short(row.get(name)) for name in headers] + [_short(cells.get(name)) for name in added]
        for row, cells in zip(given, top, strict=True)
    ]
    sentences = []
    for value in scored.to_json():
        if value["mass"] is not None:
            name = f"{value['name']}: t" if value["name"] else "T"
            sentences.append(f"{name}he labels hold {value['mass']:.1%} of the probability.")
            if value.get("agreement") is not None:
                sentences.append(f"{value['agreement']:.1%} say the same with the labels turned.")
    return page(
        "score",
        when=datetime.now(),
        title=f"Scores of {', '.join(Path(name).name for name in asked.inputs)}",
        headline=f"{scored.rows:,} rows, {scored.failed:,} failed",
        sentences=sentences,
        plots=[_plot(scored, i) for i in range(len(scored.scoring.questions))],
        headers=headers + added,
        rows=rows,
    )


def _plot(scored: Scored, number: int) -> Plot:
    question = scored.scoring.questions[number]
    counts = scored.histogram(number)
    about = "Rows by expected value." if question.values else "Rows by most probable label."
    made = bar_plot(
        question.name or "Scores", about, [("cached", n, 0, f"{n:,}") for _, n in counts]
    )
    ticks = tuple(Tick(tick.at, name) for tick, (name, _) in zip(made.x_ticks, counts, strict=True))
    return replace(made, x_ticks=ticks)


def _short(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.3f}" if isinstance(value, float) else shown(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
