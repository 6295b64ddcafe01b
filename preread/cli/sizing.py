"""Commands about sequences as a resource: `plan`, `tune`, `bench sequences`. Declared here,
listed with the others in main.py; as there, the work is imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()
measurements = typer.Typer()  # of `bench`

Model = Annotated[
    str, typer.Option("--model", "-m", help="reader (bundled), a local folder or a hub id.")
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Context = Annotated[int, typer.Option(min=0, help="Tokens of the shared context.")]
Question = Annotated[int, typer.Option(min=1, help="Tokens of a request's own.")]
Output = Annotated[int, typer.Option(min=1, help="Tokens of an answer.")]
Rounds = Annotated[int, typer.Option(min=1, help="Of each number; the median one counts.")]


@commands.command()
def plan(
    model: Model = "",
    machine: Annotated[
        str, typer.Option(help="One of the table: h100, l4, rtx4090 … (else: this machine).")
    ] = "",
    memory: Annotated[str, typer.Option(help="80GB, 24GiB: in place of the machine's.")] = "",
    context: Context = 2000,
    contexts: Annotated[int, typer.Option(min=0, help="Different contexts in memory.")] = 1,
    question: Question = 50,
    output: Output = 128,
    dtype: Dtype = "auto",
    flops: Annotated[str, typer.Option(help="Attainable rate of products, as 794T.")] = "",
    bandwidth: Annotated[str, typer.Option(help="Attainable rate of reads, as 3TB/s.")] = "",
    measure: Annotated[bool, typer.Option(help="Measure this machine's rates again.")] = False,
    tiers: Annotated[bool, typer.Option(help="Where loading KV beats computing it, here.")] = False,
    json: Json = False,
) -> None:
    """How many sequences fit, what limits them, how fast they could be; no weights are read."""
    from preread.capacity.roofline import Load
    from preread.cli.planning import MachineOptions, plan_command

    load = Load(context, contexts if context else 0, question, output)
    options = MachineOptions(machine, memory, flops, bandwidth, measure)
    plan_command(model, options, load, dtype=dtype, tiers=tiers, json=json)


@commands.command()
def tune(
    model: Model = "",
    most: Annotated[int, typer.Option(min=1, help="Highest number that is tried.")] = 256,
    context: Context = 2000,
    question: Question = 50,
    output: Output = 32,
    rounds: Rounds = 3,
    html: Annotated[Path | None, typer.Option(help="Page to write (tune-MODEL.html).")] = None,
    json: Json = False,
) -> None:
    """Find how many sequences at once are best here; the engine remembers it for this model."""
    from preread.capacity.roofline import Load
    from preread.cli.sequences import tune_command

    load = Load(context, 1, question, output)
    tune_command(model, load, most=most, rounds=rounds, html=html, json=json)


@measurements.command()
def sequences(
    model: Model = "",
    counts: Annotated[str, typer.Option(help="Numbers of sequences at once.")] = "1,2,4,8,16,32",
    context: Context = 2000,
    question: Question = 50,
    output: Output = 32,
    rounds: Rounds = 3,
    html: Annotated[
        Path | None, typer.Option(help="Page to write (bench-sequences-MODEL.html).")
    ] = None,
    json: Json = False,
) -> None:
    """Measure requests per minute, memory and latency by the number of sequences at once."""
    from preread.capacity.roofline import Load
    from preread.cli.sequences import bench_command, parse_counts

    numbers = parse_counts(counts)
    load = Load(context, 1, question, output)
    bench_command(model, load, numbers, rounds=rounds, html=html, json=json)
