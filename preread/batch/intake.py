"""An input into a journal, or against the one that is there already."""

from __future__ import annotations

import json
from collections.abc import Iterator

from preread.batch.journal import Journal
from preread.batch.keys import Keyed, Keys
from preread.batch.table import SHOWN, Faults, Rows, Table
from preread.errors import RequestError

BEGIN = "Begin anew with --fresh (what was finished is then lost), or give the input as it was."


def take_in(journal: Journal, table: Table) -> dict[str, int]:
    """Read, check and order a whole input; nothing is kept of one with faults. Returns notes: what
    was left out that is no request, and how often. Raises RequestError, SourceError."""
    journal.clear()
    try:
        faults, start = Faults(), 0
        for start, rows, keyed in _keyed(table, faults):
            if not faults.count:
                journal.add(start, rows, keyed)
                journal.tick()  # else the log would grow to the size of the input
            start += len(rows)
        if not faults.count:
            _twice(journal, table, faults)
        faults.check()
        if not start:
            raise RequestError("The input holds no request.", hint=f"Look into {table.files[0]}.")
    except BaseException:
        journal.clear()
        raise
    journal.put("total", str(start))
    journal.put("rows", str(start // table.fan - table.fixed))
    journal.put("fan", str(table.fan))
    journal.put("columns", json.dumps(table.columns))
    journal.put("files", json.dumps(table.files))
    journal.put_in_order()
    return faults.notes


def compare(journal: Journal, table: Table) -> None:
    """The input, read again, is what the journal was made of. Raises RequestError naming the rows
    that are not."""
    faults, total, changed, shown = Faults(), int(journal.get("total")), 0, list[str]()
    end = 0
    for start, rows, keyed in _keyed(table, faults):
        end = start + len(rows)
        now = zip(keyed.digests, rows.ids, rows.carry, strict=True)
        before = journal.asked(start, end)
        before += [(b"", "", "")] * (len(rows) - len(before))
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            if old != new:
                changed += 1
                if len(shown) < SHOWN:
                    file = table.files[rows.files[i]]
                    shown.append(f"{file}:{rows.lines[i]}" + ("" if old[0] else " (new)"))
    faults.check()
    if end < total:
        shown.append(f"{total - end:,} at the end are gone")
    if changed or end < total:
        every = changed == end == total
        what = "every row differs: the input, the template or an option is another" if every else (
            f"{changed:,} of {end:,} rows differ from it: {', '.join(shown)}"
        )  # fmt: skip
        raise RequestError(f"{journal.path} was begun with another input; {what}.", hint=BEGIN)


def _keyed(table: Table, faults: Faults) -> Iterator[tuple[int, Rows, Keyed]]:
    keys, start = Keys(), 0
    for rows in table.read(faults):
        yield start, rows, keys.of(rows, start)
        start += len(rows)


def _twice(journal: Journal, table: Table, faults: Faults) -> None:
    for name, where in journal.twice(SHOWN):
        (file, line), *_ = where
        others = ", ".join(f"{table.files[f]}:{at}" for f, at in where[1:])
        faults.add(table.files[file], line, "custom_id", f"{name!r} also at {others}")
