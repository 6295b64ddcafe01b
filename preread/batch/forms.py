"""What a result looks like in the output: a line of OpenAI's batch file, or a row of a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from preread.batch.journal import Journal
from preread.batch.order import Order
from preread.batch.schema import Merged
from preread.errors import RequestError

Cells = Callable[[Sequence[Merged]], dict[str, Any]]
TABLES = (".csv", ".tsv", ".jsonl")


class Form(Protocol):
    """Lines are whole, with their line end. A group is what one row of the input has asked."""

    def head(self) -> str: ...

    def lines(self, groups: Sequence[Sequence[Merged]]) -> tuple[str, int]:
        """The text of a block of rows, and how many rows are in it: less where failed ones stand in
        the error file only."""
        ...

    def error(self, group: Sequence[Merged]) -> str:
        """ "" where nothing failed."""
        ...


class OpenAILines:
    """The output and error file of OpenAI's Batch API."""

    def __init__(self, journal: Journal, created: int) -> None:
        """created: seconds since 1970 that every body carries, the same in a run taken up again."""
        self._journal = journal
        self._created = created
        self._models: dict[bytes, Order] = {}

    def head(self) -> str:
        return ""

    def lines(self, groups: Sequence[Sequence[Merged]]) -> tuple[str, int]:
        made = [self._line(row) for (row,) in groups if row.finish != "error"]
        return "".join(made), len(made)

    def _line(self, row: Merged) -> str:
        name = f"{row.idx:08d}"
        order = self._order(row.order)
        response = {"status_code": 200, "request_id": f"req_{name}", "body": self._body(row, order)}
        return _json(
            {"id": f"batch_req_{name}", "custom_id": row.id, "response": response, "error": None}
        )

    def error(self, group: Sequence[Merged]) -> str:
        (row,) = group
        if row.finish != "error":
            return ""
        return _json({
            "id": f"batch_req_{row.idx:08d}",
            "custom_id": row.id,
            "response": None,
            "error": {"code": "request_failed", "message": row.error},
        })  # fmt: skip

    def _body(self, row: Merged, order: Order) -> dict[str, Any]:
        chat = order.form == "chat"
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": row.finish}
        if chat:
            choice["message"] = {"role": "assistant", "content": row.text, "refusal": None}
        else:
            choice["text"] = row.text
        prompt = row.cached + row.computed
        told = {"cached_response": json.loads(row.response)} if row.response else {}
        return told | {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{row.idx:08d}",
            "object": "chat.completion" if chat else "text_completion",
            "created": self._created,
            "model": order.model,
            "choices": [choice],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": row.output,
                "total_tokens": prompt + row.output,
                "prompt_tokens_details": {"cached_tokens": row.cached},
            },
        }

    def _order(self, key: bytes) -> Order:
        if key not in self._models:
            if len(self._models) > 4096:
                self._models.clear()
            self._models[key] = Order.from_json(self._journal.body("orders", key))
        return self._models[key]


class TableRows:
    """The columns of the input, and those that `cells` adds. Failed rows are in the table too: what
    is added is then empty, but for `error`."""

    def __init__(
        self, suffix: str, columns: Sequence[str], added: Sequence[str], cells: Cells,
        files: Sequence[str],
    ) -> None:  # fmt: skip
        """columns: of the input, in order; JSONL repeats each object as it was. Raises RequestError
        for a suffix that is no table."""
        if suffix not in TABLES:
            raise RequestError(
                f"The output {suffix!r} is no table.", hint=f"Name it {', '.join(TABLES)}."
            )
        self._json = suffix == ".jsonl"
        self._delimiter = "\t" if suffix == ".tsv" else ","
        self._columns = list(columns)
        self._added = list(added)
        self._cells = cells
        self._files = files

    def head(self) -> str:
        return "" if self._json else self._table([[*self._columns, *self._added]])

    def lines(self, groups: Sequence[Sequence[Merged]]) -> tuple[str, int]:
        none = dict.fromkeys(self._added)
        rows = [json.loads(group[0].carry) | none | self._cells(group) for group in groups]
        if self._json:
            return "".join(map(_json, rows)), len(rows)
        names = [*self._columns, *self._added]
        return self._table([[_cell(row.get(name)) for name in names] for row in rows]), len(rows)

    def error(self, group: Sequence[Merged]) -> str:
        why = next((row.error for row in group if row.finish == "error"), "")
        if not why:
            return ""
        first = group[0]
        where = {"file": self._files[first.file], "line": first.line}
        return _json(where | {"error": why, "row": json.loads(first.carry)})

    def _table(self, rows: Sequence[Sequence[str]]) -> str:
        """A carriage return ends a row to every reader, and older Pythons write it unquoted."""
        text = io.StringIO()
        plain, quoted = (
            csv.writer(text, delimiter=self._delimiter, lineterminator="\n", quoting=how)
            for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        )
        for row in rows:
            (quoted if any("\r" in cell for cell in row) else plain).writerow(row)
        return text.getvalue()


def answer_cells(group: Sequence[Merged]) -> dict[str, Any]:
    """One answer of a row."""
    (row,) = group
    return {"answer": row.text, "finish_reason": row.finish, "error": row.error}


def labelled(columns: Sequence[str], cells: Cells) -> tuple[list[str], Cells]:
    """With a column that says which rows the response cache has answered, and how."""

    def made(group: Sequence[Merged]) -> dict[str, Any]:
        how = next((row.response for row in group if row.response), None)
        return cells(group) | {RESPONSE: json.loads(how) if how else None}

    return [*columns, RESPONSE], made


RESPONSE = "cached_response"
ANSWER = ("answer", "finish_reason", "error")


def _cell(value: Any) -> str:
    """As a cell of a CSV."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
