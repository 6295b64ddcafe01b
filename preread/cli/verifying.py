"""`preread verify`: of kept chunks, of a codec, of contexts joined approximately. Declared here,
listed with the others in main.py; the work is imported when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from preread.config import load_config, local_model
from preread.errors import UsageError

if TYPE_CHECKING:
    from preread.app.approximate import ApproximateReport
    from preread.contexts.catalog.base import ContextRecord
    from preread.store.upkeep import VerifyReport

commands = typer.Typer()


@commands.command()
def verify(
    name: Annotated[str, typer.Argument(help="One context; all chunks when left out.")] = "",
    deep: Annotated[
        bool,
        typer.Option("--deep", help="As the next load would: open seals, compare every field."),
    ] = False,
    codec: Annotated[
        str, typer.Option(help="Measure what this codec does to answers instead: fp8, int8.")
    ] = "",
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Measure what joining NAME+NAME so does instead.")
    ] = False,
    questions: Annotated[
        Path | None, typer.Option(help="With --approximate: a file of them, as of compare.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="reader (bundled), a local folder or a hub id.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")] = False,
) -> None:
    """Read and check every kept chunk; damaged ones are set aside and will be recomputed."""
    if sum((deep, bool(codec), approximate)) > 1:
        raise UsageError(
            "--deep, --codec and --approximate are different things to verify.", hint="Give one."
        )
    if questions is not None and not approximate:
        raise UsageError("--questions goes with --approximate.", hint="Leave it out.")
    if codec:
        from preread.cli.lossy import codec_command

        codec_command(codec, model=model, json=json)
    elif approximate:
        approximate_command(name, questions, model=local_model(model), json=json)
    elif deep:
        deep_command(name, model=model, json=json)
    else:
        from preread.cli.managing import verify_command

        verify_command(name, json=json)


def deep_command(name: str, *, model: str, json: bool) -> None:
    """One context, or all: each by the model that read it and in its codec."""
    from preread.app import open as open_engine
    from preread.app.auditing import audit_contexts
    from preread.cli.managing import tell_verified
    from preread.cli.target import resolve
    from preread.contexts.manage import known
    from preread.home import open_catalog
    from preread.store.auditing import together

    config = load_config()
    catalog = open_catalog(config)
    found = [known(catalog, name)] if name else [catalog.get(s.name) for s in catalog.summaries()]
    configured = config.model.model, config.store.codec
    by_engine: dict[tuple[str, str], list[ContextRecord]] = {}
    for record in filter(None, found):  # one may just have been removed
        meant = resolve(catalog, record.name, os.getcwd(), model, configured)
        by_engine.setdefault((meant.model, meant.codec), []).append(record)
    reports: list[VerifyReport] = []
    left: list[tuple[str, str]] = []
    for (wanted, codec), records in by_engine.items():
        with open_engine(wanted, codec=codec) as engine:
            audited = audit_contexts(engine, records)
        reports.append(audited.report)
        left += audited.left
    tell_verified(together(reports), left, json=json)


def approximate_command(target: str, questions: Path | None, *, model: str, json: bool) -> None:
    """On the user's own contexts; what is found goes with every answer from now on."""
    from preread.app import open as open_engine
    from preread.app.approximate import check_approximate
    from preread.cli.output import emit, note
    from preread.cli.target import meant

    if not target:
        raise UsageError(
            "There are no contexts to join.", hint="preread verify --approximate NAME+NAME"
        )
    target, model, codec = meant(target, model, os.getcwd())
    note(f"asking {target} twice: read as one, and put together from its parts")
    with open_engine(model, codec=codec) as engine:
        report = check_approximate(engine, target, questions)
    if json:
        emit(report.to_json())
    else:
        print("\n".join(lines(report)))


def lines(report: ApproximateReport) -> tuple[str, ...]:
    """For people."""
    approximate, agreed = report.approximate, report.approximate.agreed
    return (
        f"{report.target} with {report.model}, {report.tokens:,} tokens: {approximate.blend}",
        str(agreed),
        "every approximate answer on these documents says so from now on",
    )
