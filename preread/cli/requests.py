"""`preread batch`: what the files ask, and what its output looks like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preread.backend import Generate
from preread.batch.bodies import Defaults, Wrong, generate
from preread.batch.files import expand, kind
from preread.batch.forms import (
    ANSWER,
    Cells,
    Form,
    OpenAILines,
    TableRows,
    answer_cells,
    labelled,
)
from preread.batch.journal import Journal
from preread.batch.openai import BatchFile
from preread.batch.order import Order
from preread.batch.table import Table
from preread.batch.template import RowTable, Template
from preread.cli.asking import read_schema
from preread.cli.batching import Batch, Options, model_of, opener, read_text
from preread.config import load_config, local_model
from preread.errors import RequestError
from preread.types import Prefix

OTHERS = (".csv", ".tsv", ".parquet")  # names of files that hold no JSON lines


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says about the requests. format: auto, openai, csv, …"""

    inputs: Sequence[str]
    format: str = "auto"
    model: str = ""
    prompt: Path | None = None
    item: str = ""
    max_tokens: int = 0
    temperature: float = 0.0
    seed: int | None = None
    schema: Path | None = None


def batch_command(asked: Asked, options: Options) -> None:
    """See `preread batch --help`."""
    table: Table = (
        _batch_file(asked)
        if _is_openai(asked)
        else _rows(asked, model_of(asked.model, options.backend), _added(options)[0])
    )

    added, cells = _added(options)

    def form(journal: Journal) -> Form:
        columns: list[str] = json.loads(journal.get("columns"))
        if isinstance(table, BatchFile):
            return OpenAILines(journal, int(journal.get("began")))
        files = json.loads(journal.get("files"))
        return TableRows(options.output.suffix, columns, added, cells, files)

    if not isinstance(table, BatchFile):
        TableRows(options.output.suffix, [], added, cells, [])  # a suffix that can be had
    elif options.output.suffix in OTHERS:
        raise RequestError(
            f"{options.output}: batch lines are answered by JSON lines.", hint="Name it .jsonl."
        )
    reads = tuple(path for path in (asked.prompt, asked.schema) if path)
    options = replace(options, reads=reads)
    code, _ = Batch(table, options, form, opener(options.backend, options.cache)).run()
    if code:
        raise SystemExit(code)


def _added(options: Options) -> tuple[Sequence[str], Cells]:
    """Columns that the output adds to a table, and what makes them."""
    return labelled(ANSWER, answer_cells) if options.labels_responses else (ANSWER, answer_cells)


def _is_openai(asked: Asked) -> bool:
    """Batch lines, unless something says that they are rows of a table."""
    if asked.format != "auto" or asked.prompt or asked.item:
        if asked.format == "openai" and (asked.prompt or asked.item):
            raise RequestError(
                "--prompt and --item are for rows of a table; batch lines are whole requests.",
                hint="Give --format jsonl, or leave them out.",
            )
        return asked.format == "openai"
    kinds = {kind(name) for name in expand(asked.inputs)}
    if "jsonl" in kinds and len(kinds) > 1:
        raise RequestError("The inputs are of several kinds.", hint="Say which: --format.")
    return "jsonl" in kinds


def _batch_file(asked: Asked) -> BatchFile:
    if asked.schema:
        raise RequestError(
            "--schema is for rows of a table.", hint="Give each body its response_format."
        )
    defaults, _ = _defaults(asked, local_model(asked.model))
    return BatchFile(asked.inputs, defaults)


def _defaults(asked: Asked, model: str = "") -> tuple[Defaults, Generate]:
    """What requests are answered with that do not say it. Raises RequestError for options that
    nothing could be answered with."""
    tokens = asked.max_tokens or load_config().context.max_tokens
    defaults = Defaults(model, tokens, asked.temperature, asked.seed)
    try:
        return defaults, generate({}, defaults)
    except Wrong as exc:
        option, wrong = exc.args
        raise RequestError(
            f"--{option.replace('_', '-')}: {wrong}.", hint="See preread batch --help."
        ) from None


def _rows(asked: Asked, model: str, reserved: Sequence[str]) -> RowTable:
    _, work = _defaults(asked)
    order = Order(model, replace(work, schema=read_schema(asked.schema)))
    shared = Prefix(read_text(asked.prompt, "--prompt") if asked.prompt else "")
    given = "" if asked.format == "auto" else asked.format
    asks: list[tuple[Order, Prefix, str]] = [(order, shared, "")]
    return RowTable(asked.inputs, asks, Template(asked.item), format=given, reserved=reserved)
