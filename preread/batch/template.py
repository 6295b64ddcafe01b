"""Rows of a table -> requests: a shared part that is written once, and what each row adds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from string import Formatter
from typing import Any

from preread.batch.files import Record, expand, records
from preread.batch.order import Order
from preread.batch.table import BLOCK, Faults, Rows
from preread.errors import RequestError
from preread.types import Prefix

Write = Callable[[dict[str, Any]], str]


class Template:
    """`{name}: {profile}` of a row; "" is the whole row, a line `column: value` for each."""

    def __init__(self, text: str = "") -> None:
        """Raises RequestError for braces that are no column."""
        self._pieces: list[tuple[str, str | None]] = []
        try:
            for literal, name, spec, convert in Formatter().parse(text):
                if name == "" or spec or convert:
                    raise ValueError(f"{{{name}}} is no plain column")
                self._pieces.append((literal, name))
        except ValueError as exc:
            raise RequestError(
                f"--item {text!r}: {exc}.", hint="Give {column}; a brace itself is {{ or }}."
            ) from None
        named = [name for _, name in self._pieces if name is not None]
        self._values = itemgetter(*named) if named else None
        self._one = len(named) == 1
        self._format = "".join(
            literal.replace("%", "%%") + ("" if name is None else "%s")
            for literal, name in self._pieces
        )

    def write(self, row: dict[str, Any]) -> str:
        """Raises KeyError with the column that a row lacks."""
        if not self._pieces:
            return "\n".join([f"{name}: {shown(value)}" for name, value in row.items()])
        if self._values is None:
            return self._format % ()
        found = self._values(row)
        values = (found,) if self._one else found
        return self._format % tuple([shown(value) for value in values])


def shown(value: Any) -> str:
    """Texts as they are, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


class RowTable:
    """Rows of CSV, TSV, JSONL or Parquet, each of which asks one request or, with several orders,
    one after the other. See batch.table.Table."""

    def __init__(
        self,
        patterns: Sequence[str],
        asks: Sequence[tuple[Order, Prefix, str]],
        item: Template,
        *,
        format: str = "",
        reserved: Sequence[str] = (),
        fixed: Sequence[str] = (),
    ) -> None:
        """asks: of every row, in this order: the order, the shared part, and what follows the item.
        reserved: columns that the output adds. fixed: items that are no rows of the input and are
        asked after it (each as all `asks`)."""
        self._names = expand(patterns)
        self._asks = list(asks)
        self._item = item
        self._format = format
        self._reserved = frozenset(reserved)
        self._fixed = list(fixed)
        self._columns: dict[str, None] = {}  # in the order in which they were met
        self._encode = json.JSONEncoder(ensure_ascii=False, default=str).encode

    @property
    def files(self) -> list[str]:
        return self._names

    @property
    def fan(self) -> int:
        return len(self._asks)

    @property
    def fixed(self) -> int:
        return len(self._fixed)

    @property
    def columns(self) -> Sequence[str]:
        return list(self._columns)

    def read(self, faults: Faults) -> Iterator[Rows]:
        rows = Rows()
        for record in records(self._names, self._format, faults):
            if not self._columns.keys() >= record.value.keys():
                self._columns |= dict.fromkeys(record.value)
                self._clash(record, faults)
            self._add(rows, record, faults)
            if len(rows) >= BLOCK:
                yield rows
                rows = Rows()
        for item in self._fixed:
            for order, prefix, after in self._asks:
                rows.add((0, 0), order, prefix, item + after)
        if len(rows):
            yield rows

    def _add(self, rows: Rows, record: Record, faults: Faults) -> None:
        file, line, value = record
        try:
            item = self._item.write(value)
        except KeyError as exc:
            column, known = exc.args[0], ", ".join(value)
            faults.add(self._names[file], line, column, f"no such column; there are {known}")
            return
        if not item.strip():
            faults.add(self._names[file], line, "item", "is empty")
            return
        carry = self._encode(value)
        for order, prefix, after in self._asks:
            rows.add((file, line), order, prefix, item + after, carry=carry)
            carry = ""  # once per row

    def _clash(self, record: Record, faults: Faults) -> None:
        if taken := sorted(self._reserved & record.value.keys()):
            wrong = "the output adds a column of that name; rename it"
            faults.add(self._names[record.file], record.line, taken[0], wrong)
