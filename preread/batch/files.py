"""Files of an input: globs, standard input, gzip; and their records with the line of each."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from preread.batch.parquet import parquet_rows
from preread.batch.strict import NotFinite, Twice, parse
from preread.batch.table import Faults
from preread.errors import SourceError

STDIN = "-"
GZIP = b"\x1f\x8b"
LONGEST = 1 << 28  # bytes of one line or cell
KINDS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


class Record(NamedTuple):
    """file: its number; line: where it begins, from 1 (Parquet: the row)."""

    file: int
    line: int
    value: dict[str, Any]


def expand(patterns: Sequence[str]) -> list[str]:
    """The files that are meant, each once whatever it is called, globs sorted. Raises
    SourceError."""
    found: dict[str, str] = {}
    for pattern in patterns:
        path = os.path.expanduser(pattern)
        some = [path] if pattern == STDIN or os.path.isfile(path) else sorted(glob.glob(path))
        if not some:
            raise SourceError(
                f"{pattern}: no such file.", hint="Give files, globs, or - for stdin."
            )
        for name in some:
            if not os.path.isdir(name):
                found.setdefault(name if name == STDIN else os.path.realpath(name), name)
    if not found:
        raise SourceError("only folders were given.", hint="Give files: 'folder/*.jsonl'.")
    return list(found.values())


def kind(name: str, given: str = "") -> str:
    """csv, tsv, jsonl or parquet, by the name. Raises SourceError."""
    if given:
        return given
    if name == STDIN:
        return "jsonl"
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    if suffix not in KINDS:
        raise SourceError(
            f"{name}: unknown kind of file.", hint=f"Name it {', '.join(KINDS)}, or give --format."
        )
    return KINDS[suffix]


def lines(number: int, name: str, faults: Faults) -> Iterator[tuple[int, str]]:
    """(line, text) of the lines that are not blank."""
    with _opened(name) as file:
        for at, raw in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
            try:
                text = raw.decode("utf-8-sig" if at == 1 else "utf-8")
            except UnicodeDecodeError as exc:
                faults.add(name, at, "text", _not_utf_8(exc))
                continue
            if text.isspace() or not text:
                faults.note("blank lines left out")
            else:
                yield at, text


def records(names: Sequence[str], given: str, faults: Faults) -> Iterator[Record]:
    """All rows of all files as objects: cells of a CSV are texts."""
    for number, name in enumerate(names):
        what = kind(name, given)
        if what == "parquet":
            yield from _parquet(number, name, faults)
        elif what == "jsonl":
            yield from _objects(number, name, faults)
        else:
            yield from _cells(number, name, "\t" if what == "tsv" else ",", faults)


def _objects(number: int, name: str, faults: Faults) -> Iterator[Record]:
    for at, text in lines(number, name, faults):
        value = parsed(text, name, at, faults)
        if value is not None:
            yield Record(number, at, value)


def parsed(text: str, name: str, at: int, faults: Faults) -> dict[str, Any] | None:
    """A JSON object; None and a fault for anything else."""
    try:
        value = parse(text)
    except (NotFinite, Twice) as exc:
        faults.add(name, at, exc.field or "line", str(exc))
        return None
    except (ValueError, RecursionError) as exc:
        faults.add(name, at, "line", f"not JSON: {exc}")
        return None
    if not isinstance(value, dict):
        faults.add(name, at, "line", f"expected an object, got {type(value).__name__}")
        return None
    if "\\ud" in text or "\\uD" in text:  # half of a surrogate pair is no character
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as exc:
            faults.add(name, at, "line", f"holds {exc.object[exc.start]!r}, which is no character")
            return None
    return cast("dict[str, Any]", value)


def _cells(number: int, name: str, delimiter: str, faults: Faults) -> Iterator[Record]:
    csv.field_size_limit(LONGEST)
    with _opened(name) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", newline="")
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] = []
        at = 1
        try:
            for cells in rows:
                line, at = at, rows.line_num + 1
                if not cells:
                    faults.note("blank lines left out")
                elif not header:
                    header = _header(cells, name, line, faults)
                    if not header:
                        return
                elif len(cells) != len(header):
                    wrong = f"{len(cells)} cells, expected {len(header)} as in the header"
                    faults.add(name, line, "row", wrong)
                else:
                    yield Record(number, line, dict(zip(header, cells, strict=True)))
        except csv.Error as exc:  # what follows cannot be told apart
            unended = "; a quote is opened and never closed" if "end of data" in str(exc) else ""
            faults.add(name, at, "row", f"cannot be read: {exc}{unended}")
        except UnicodeDecodeError as exc:  # met while more was read than the rows so far
            faults.add(name, rows.line_num + 1 + _line_ends(exc), "row", _not_utf_8(exc))


def _not_utf_8(exc: UnicodeDecodeError) -> str:
    wide = exc.object[:2] in (b"\xff\xfe", b"\xfe\xff")
    what = "UTF-16" if wide else f"byte 0x{exc.object[exc.start]:02x}"
    return f"not UTF-8 ({what}); save the file as UTF-8"


def _line_ends(exc: UnicodeDecodeError) -> int:
    """Before the byte that is none of a text."""
    before = exc.object[: exc.start].replace(b"\r\n", b"\n")
    return before.count(b"\n") + before.count(b"\r")


def _header(cells: list[str], name: str, line: int, faults: Faults) -> list[str]:
    """Nothing and a fault, where columns have no names of their own."""
    for i, cell in enumerate(cells):
        if not cell.strip() or cell in cells[:i]:
            what = "named twice" if cell.strip() else "without a name"
            faults.add(name, line, f"column {i + 1}", f"{cell!r} is {what}")
            return []
    return cells


def _parquet(number: int, name: str, faults: Faults) -> Iterator[Record]:
    with _opened(name) as file:
        for at, value in parquet_rows(name, file, faults):
            yield Record(number, at, value)


@contextmanager
def _opened(name: str) -> Generator[IO[bytes]]:
    """The bytes of a file, unpacked. Raises SourceError, also for what goes wrong later on."""
    try:
        with _raw(name) as raw:
            packed = raw.peek(2)[:2] == GZIP
            yield io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise SourceError(f"{name}: damaged gzip: {exc}.", hint="Pack it again.") from exc
    except OSError as exc:
        raise SourceError(
            f"{name}: cannot be read: {exc.strerror or exc}.", hint="Check the path."
        ) from exc


@contextmanager
def _raw(name: str) -> Generator[io.BufferedReader]:
    if name == STDIN:
        yield cast("io.BufferedReader", sys.stdin.buffer)
        return
    with open(name, "rb") as file:
        yield file
