"""The command line. This file declares commands and options; the work is imported when one runs, so
that `preread --help` and `preread list` answer at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.models import TyperInfo

import preread
from preread.cli.batches import commands as batches
from preread.cli.benches import measurements as jobs
from preread.cli.carrying import commands as carrying
from preread.cli.output import INTERRUPTED, USAGE, fail
from preread.cli.serving import commands as serving
from preread.cli.sizing import commands, measurements
from preread.cli.verifying import commands as verifying
from preread.config import local_model

app = typer.Typer(
    name="preread",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="Name of a context (see `preread list`).")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="reader (bundled), a local folder or a hub id.")
]
System = Annotated[str, typer.Option("--system", help="Instructions in place of the default ones.")]
Session = Annotated[str, typer.Option("--session", "-s", help="Keep and continue a history.")]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", min=0, help="Longest answer; 0: as configured.")
]
NoResident = Annotated[
    bool, typer.Option("--no-resident", help="Do not use a running `preread up`.")
]


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Give the model its pre-read once; ask it anything, any number of times."""
    if version:
        print(f"preread {preread.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(USAGE)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Name to give the context.")],
    paths: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for stdin.")],
    model: Model = "",
    ttl: Annotated[str, typer.Option(help="Expires this long after the build: 7d, 12h.")] = "",
    system: System = "",
    codec: Annotated[
        str, typer.Option(help="raw, fp8 or int8, of this context from now on; see verify --codec.")
    ] = "",
    force: Annotated[bool, typer.Option(help="Build even if nothing changed.")] = False,
    json: Json = False,
) -> None:
    """Read documents once and keep what the model made of them under NAME."""
    from preread.cli.building import build_command

    build_command(
        name, paths, model=model, ttl=ttl, system=system, codec=codec, force=force, json=json
    )


@app.command()
def ask(
    target: Annotated[str, typer.Argument(help="Name of a context, or a PATH (built if missing).")],
    question: Annotated[str, typer.Argument(help="The question; - reads it from stdin.")],
    session: Session = "",
    model: Model = "",
    max_tokens: MaxTokens = 0,
    schema: Annotated[
        Path | None, typer.Option(help="JSON schema file the answer must satisfy.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Of NAME+NAME: join what each has read alone.")
    ] = False,
    no_resident: NoResident = False,
    json: Json = False,
) -> None:
    """Answer a question from a context."""
    from preread.cli.asking import AskRequest, ask_command, read_question, read_schema

    request = AskRequest(
        target=target,
        question=read_question(target, question),
        cwd=os.getcwd(),
        session=session,
        model=local_model(model),
        max_tokens=max_tokens,
        schema=read_schema(schema),
        temperature=temperature,
        seed=seed,
        approximate=approximate,
    )
    ask_command(request, resident=not no_resident, json=json)


@app.command()
def warm(
    target: Annotated[str, typer.Argument(help="Name of a context, or a PATH (built if missing).")],
    lease: Annotated[str, typer.Option(help="Keep it this long: 30m, 12h.")] = "",
    model: Model = "",
    no_resident: NoResident = False,
    json: Json = False,
) -> None:
    """Load a context before anybody asks: into memory where `preread up` runs, else near."""
    from preread.cli.warming import warm_command
    from preread.contexts.names import parse_ttl

    warm_command(
        target,
        model=local_model(model),
        lease_s=parse_ttl(lease) if lease else 0.0,
        resident=not no_resident,
        json=json,
    )


@app.command()
def chat(name: Name, session: Session = "", model: Model = "", max_tokens: MaxTokens = 0) -> None:
    """Talk with a context; the history is kept. /fork, /new and /quit are understood."""
    from preread.cli.chatting import chat_command

    chat_command(name, session=session, model=model, max_tokens=max_tokens)


@app.command("list")
def list_(
    tiers: Annotated[bool, typer.Option("--tiers", help="What each tier holds of each.")] = False,
    json: Json = False,
) -> None:
    """List the contexts and their state."""
    from preread.cli.holding import holding_command
    from preread.cli.managing import list_command

    (holding_command if tiers else list_command)(json=json)


@app.command()
def show(name: Name, json: Json = False) -> None:
    """Show one context: sources, shards, versions, sessions, state."""
    from preread.cli.managing import show_command

    show_command(name, json=json)


@app.command()
def invalidate(
    name: Name,
    reason: Annotated[str, typer.Option(help="Kept and shown.")] = "by hand",
    json: Json = False,
) -> None:
    """Have a context rebuilt before its next use."""
    from preread.cli.managing import invalidate_command

    invalidate_command(name, reason, json=json)


@app.command()
def erase(
    model_of: Annotated[
        str, typer.Option(help="Only what the model has read that read this context.")
    ] = "",
    all_tenants: Annotated[
        bool,
        typer.Option(help="With --model-of: of every tenant. For the owner of the home alone."),
    ] = False,
    json: Json = False,
) -> None:
    """Void all kept KV of this tenant (store.tenant) at once, in every tier; the texts stay."""
    from preread.cli.managing import erase_command

    erase_command(model_of, all_tenants, json=json)


@app.command()
def rm(name: Name, json: Json = False) -> None:
    """Forget a context, all its versions and sessions. `preread gc` then frees the disk."""
    from preread.cli.managing import rm_command

    rm_command(name, json=json)


@app.command()
def gc(
    grace: Annotated[str, typer.Option(help="Leave chunks younger than this alone.")] = "1h",
    shared: Annotated[
        bool, typer.Option("--shared", help="Also far tiers that other catalogs may use.")
    ] = False,
    json: Json = False,
) -> None:
    """Free what no context refers to: old versions, expired contexts, orphaned chunks."""
    from preread.cli.managing import gc_command

    gc_command(grace, shared=shared, json=json)


@app.command()
def compare(
    name: Name,
    questions: Annotated[Path, typer.Argument(help='JSONL: {"question", "answer", "also"}.')],
    arms: Annotated[str, typer.Option(help="Of: cached, incontext, bm25.")] = (
        "cached,incontext,bm25"
    ),
    html: Annotated[Path | None, typer.Option(help="Page to write (compare-NAME.html).")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Only the first N questions; 0: all.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="Passages of the bm25 arm.")] = 5,
    json: Json = False,
) -> None:
    """Ask every arm the same questions; count build time; print the break-even question count."""
    from preread.cli.comparing import compare_command

    compare_command(name, questions, arms=arms, html=html, limit=limit, top=top, json=json)


@app.command()
def doctor(
    model: Model = "",
    prompts: Annotated[
        int, typer.Option(min=0, help="Random prompts of the parity check; 0: none.")
    ] = 8,
    json: Json = False,
) -> None:
    """Check this machine, the home folder, and that cached equals uncached on your weights."""
    from preread.cli.doctor import doctor_command

    doctor_command(model, prompts=prompts, json=json)


@app.command()
def demo(json: Json = False) -> None:
    """The main job, offline: read a handbook once, answer here and in a new process; score a
    thousand applicants."""
    from preread.cli.demo import demo_command

    demo_command(json=json)


@app.command()
def up(
    model: Model = "",
    idle: Annotated[
        float, typer.Option(min=0, help="Seconds without a request; 0: as configured.")
    ] = 0,
    foreground: Annotated[bool, typer.Option(help="Stay in this terminal.")] = False,
    json: Json = False,
) -> None:
    """Keep the model loaded in a resident process; `ask` uses it when it runs."""
    from preread.cli.resident import up_command

    up_command(model, idle=idle, foreground=foreground, json=json)


@app.command()
def down(json: Json = False) -> None:
    """Stop the resident process."""
    from preread.cli.resident import down_command

    down_command(json=json)


app.registered_commands += commands.registered_commands + carrying.registered_commands
app.registered_commands += verifying.registered_commands + batches.registered_commands
app.registered_commands += serving.registered_commands
bench = typer.Typer(no_args_is_help=True, help="Measure this machine and this model.")
bench.registered_commands += measurements.registered_commands + jobs.registered_commands
app.registered_groups += [TyperInfo(bench, name="bench")]


def main() -> None:
    """Entry point: errors become one paragraph and an exit code."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer swallows Ctrl-C
            raise KeyboardInterrupt
    except BaseException as exc:
        code = fail(exc, json="--json" in sys.argv[1:])
    sys.exit(code if isinstance(code, int) else 0)
