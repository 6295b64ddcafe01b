"""Inputs for the tests, and a run of them from file to file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preread.backend import Backend, Generate
from preread.batch.bodies import Defaults
from preread.batch.forms import ANSWER, Form, OpenAILines, TableRows, answer_cells
from preread.batch.job import begin, models, tallied
from preread.batch.journal import Journal
from preread.batch.openai import BatchFile
from preread.batch.order import Order
from preread.batch.output import Written, write_in_order
from preread.batch.run import Runner, Stop
from preread.batch.table import Table
from preread.batch.tally import Tally
from preread.batch.template import RowTable, Template
from preread.types import Prefix

RUBRIC = "Say yes if the candidate can sail.\n" * 40


def chat(name: str, text: str, system: str = RUBRIC, **body: Any) -> dict[str, Any]:
    """A line of a batch file."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    made = {"model": "m", "messages": messages, "max_tokens": 8} | body
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": made}


def written(path: Path, lines: Sequence[Any]) -> Path:
    """A JSONL file."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts))
    return path


def batch_table(*paths: Path, **defaults: Any) -> BatchFile:
    return BatchFile([str(path) for path in paths], Defaults(**defaults))


def row_table(*paths: Path, item: str = "", prompt: str = RUBRIC) -> RowTable:
    order = Order("m", Generate(max_tokens=8))
    asks = [(order, Prefix(prompt), "")]
    return RowTable([str(path) for path in paths], asks, Template(item), reserved=ANSWER)


def finished(
    table: Table,
    journal: Journal,
    backend: Backend,
    output: Path,
    *,
    stop: Stop | None = None,
    **how: bool,
) -> tuple[Tally, Written]:
    """Run a table to its end, or until it is stopped, and write what there is."""
    begin(journal, table, **how)
    tally = tallied(journal)
    for model, _ in models(journal):
        asyncio.run(Runner(journal, backend, model, tally, stop or Stop()).run())
    journal.check()
    errors = output.with_suffix(".errors.jsonl")
    return tally, write_in_order(journal, form_of(journal, output), output, errors)


def form_of(journal: Journal, output: Path) -> Form:
    columns = json.loads(journal.get("columns"))
    if not columns:
        return OpenAILines(journal, int(journal.get("began")))
    files = json.loads(journal.get("files"))
    return TableRows(output.suffix, columns, ANSWER, answer_cells, files)


def objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
