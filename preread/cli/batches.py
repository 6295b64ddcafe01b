"""Commands over whole files: `batch`, `score`. Declared here, listed with the others in main.py; as
there, the work is imported when one runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()

Inputs = Annotated[
    list[str], typer.Argument(help="Files or globs; JSONL, CSV, TSV, Parquet, .gz; - for stdin.")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write; --dry-run needs none.")
]
Model = Annotated[str, typer.Option("--model", "-m", help="For all rows, in place of theirs.")]
Item = Annotated[
    str, typer.Option(help="What a row asks, '{name}: {profile}'; else the whole row.")
]
Journal = Annotated[
    Path | None, typer.Option(help="State of the run; else the output's name + .journal.")
]
Errors = Annotated[
    Path | None, typer.Option("--error-file", help="Else the output's name + .errors.jsonl.")
]
ReportFile = Annotated[Path | None, typer.Option("--report", help="Write the bill as JSON.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Go on, and run failed rows again.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run has done.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it would take.")]
Money = Annotated[
    float | None, typer.Option(help="Stop before more is spent, in the currency of the prices.")
]
Tokens = Annotated[
    int | None, typer.Option(min=1, help="Stop before more are computed and written out.")
]
Backend = Annotated[
    str, typer.Option(help="Somebody else's server, openai:URL, anthropic …; docs/backends.md.")
]
Cache = Annotated[
    bool, typer.Option("--cache", help="Answer equal requests of earlier runs from what is kept.")
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


class Format(StrEnum):
    """Of an input whose name does not say it."""

    auto = "auto"
    openai = "openai"
    csv = "csv"
    tsv = "tsv"
    jsonl = "jsonl"
    parquet = "parquet"


class InOrderOf(StrEnum):
    """How the output is sorted."""

    input = "input"
    completion = "completion"


FormatOption = Annotated[
    Format, typer.Option("--format", help="openai: batch lines; jsonl: rows; else by the name.")
]


def _target(output: Path | None, dry_run: bool, name: str) -> Path:
    """Where the result goes. name: stands in where nothing is written."""
    from preread.errors import UsageError

    if output is None and not dry_run:
        raise UsageError("Where is the result to go?", hint=f"Add -o {name}, or --dry-run.")
    if output == Path("-"):
        raise UsageError(
            "A result is a file: beside it lies what --resume goes on with.",
            hint=f"Give -o {name}, then `cat {name}`.",
        )
    return output or Path(name)


@commands.command()
def batch(
    inputs: Inputs,
    output: Output = None,
    model: Model = "",
    prompt: Annotated[
        Path | None, typer.Option(help="What all rows share: instructions, a rubric.")
    ] = None,
    item: Item = "",
    format: FormatOption = Format.auto,
    max_tokens: Annotated[
        int, typer.Option(min=0, help="Longest answer, where a row says none; 0: as configured.")
    ] = 0,
    temperature: Annotated[float, typer.Option(min=0, help="Where a row says none.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Where a row says none.")] = None,
    schema: Annotated[
        Path | None, typer.Option(help="JSON schema file that answers to rows of a table satisfy.")
    ] = None,
    order: Annotated[
        InOrderOf, typer.Option(help="completion: lines are written as they come.")
    ] = InOrderOf.input,
    resume: Resume = False,
    retry_failed: Retry = False,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    journal: Journal = None,
    error_file: Errors = None,
    report: ReportFile = None,
    budget_money: Money = None,
    budget_tokens: Tokens = None,
    backend: Backend = "",
    cache: Cache = False,
    json: Json = False,
) -> None:
    """Answer every request of a file: what they share is read once, nothing is lost, the output is
    in the order of the input. Exit code 3: some rows failed; 4: stopped, --resume goes on."""
    from preread.cli.batching import Options
    from preread.cli.requests import Asked, batch_command

    asked = Asked(inputs, str(format), model, prompt, item, max_tokens, temperature, seed, schema)
    options = Options(
        _target(output, dry_run, "answers.jsonl"), journal, error_file, report, resume,
        retry_failed, fresh, dry_run, json, backend, budget_money, budget_tokens, cache,
        by_completion=order == InOrderOf.completion,
    )  # fmt: skip
    batch_command(asked, options)


@commands.command()
def score(
    inputs: Inputs,
    output: Output = None,
    rubric: Annotated[Path | None, typer.Option(help="What all rows are scored by.")] = None,
    labels: Annotated[str, typer.Option(help="A,B,C: probabilities over these answers.")] = "",
    scale: Annotated[str, typer.Option(help="1-5: whole numbers, and their expected value.")] = "",
    questions: Annotated[
        Path | None, typer.Option(help='JSONL: {"name", "question", "labels" or "scale"}.')
    ] = None,
    model: Model = "",
    item: Item = "",
    format: FormatOption = Format.auto,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Divide by what items without content get.")
    ] = False,
    check_position: Annotated[
        bool, typer.Option("--check-position", help="Ask again with the labels turned; average.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Page; else the output's name, .html.")] = None,
    resume: Resume = False,
    retry_failed: Retry = False,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    journal: Journal = None,
    error_file: Errors = None,
    report: ReportFile = None,
    budget_money: Money = None,
    budget_tokens: Tokens = None,
    backend: Backend = "",
    cache: Cache = False,
    json: Json = False,
) -> None:
    """Score every row of a table: the probabilities of given labels, from one forward each; nothing
    is written out. The columns of the input pass through. Exit codes as of `batch`."""
    from preread.cli.batching import Options
    from preread.cli.scoring import Asked, score_command

    asked = Asked(
        inputs, rubric, labels, scale, questions, item, str(format), model, calibrate,
        check_position, html,
    )  # fmt: skip
    options = Options(
        _target(output, dry_run, "scores.csv"), journal, error_file, report, resume,
        retry_failed, fresh, dry_run, json, backend, budget_money, budget_tokens, cache,
    )  # fmt: skip
    score_command(asked, options)
