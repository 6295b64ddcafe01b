"""Measurements of whole jobs: `bench batch`. Declared here, as in main.py; the work is imported
when one runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

measurements = typer.Typer()


class ModeOption(StrEnum):
    """See batch.trial.Mode."""

    baseline = "baseline"
    keep_alive = "keep-alive"
    full = "full"
    all = "all"


@measurements.command()
def batch(
    requests: Annotated[int, typer.Option("--requests", "-n", min=1, help="How many.")] = 100,
    mode: Annotated[
        ModeOption,
        typer.Option(
            help="baseline: whole prompts, the model loaded anew; keep-alive: it stays; "
            "full: what is shared is read once."
        ),
    ] = ModeOption.all,
    model: Annotated[str, typer.Option("--model", "-m", help="As configured, if not given.")] = "",
    backend: Annotated[
        str, typer.Option(help="Somebody else's server, openai:URL …; docs/backends.md.")
    ] = "",
    shared: Annotated[int, typer.Option(min=16, help="Tokens that all prompts share.")] = 2000,
    own: Annotated[int, typer.Option(min=8, help="Tokens of each request's own.")] = 50,
    out: Annotated[
        int, typer.Option(min=0, help="Tokens to write; 0: choose a label, write nothing.")
    ] = 0,
    sample: Annotated[
        int, typer.Option(min=1, help="Without reuse, run so many of them and extrapolate.")
    ] = 100,
    sample_full: Annotated[
        int, typer.Option(min=0, help="The same in mode full; 0: run them all.")
    ] = 0,
    loads: Annotated[
        int, typer.Option(min=1, help="Of the model per 100 requests in mode baseline.")
    ] = 6,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")] = False,
) -> None:
    """Measure what reuse saves: one prompt, many candidates, with and without it, beside what was
    expected."""
    from preread.cli.benching import Asked, bench_command

    asked = Asked(requests, str(mode), model, backend, shared, own, out, sample, sample_full, loads)
    bench_command(asked, output=output, json=json)
