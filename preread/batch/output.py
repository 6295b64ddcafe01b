"""Results into files: all of them in the order of the input, or each as it comes."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from preread.batch.forms import Form
from preread.batch.journal import Journal
from preread.batch.schema import Merged
from preread.errors import PrereadError, Resumable, SourceError


class Written(NamedTuple):
    """Rows of the input in each file."""

    rows: int
    failed: int


def write_errors(journal: Journal, form: Form, errors: Path) -> int:
    """Write the error file alone; returns the rows in it."""
    failed = 0
    with _replacing(errors) as bad:
        for groups in _groups(journal):
            wrong = [line for line in map(form.error, groups) if line]
            failed += len(wrong)
            bad.write("".join(wrong))
    if not failed:
        errors.unlink(missing_ok=True)
    _mark(journal)
    return failed


def write_in_order(journal: Journal, form: Form, output: Path, errors: Path) -> Written:
    """Write both files, each whole or not at all; no error file where nothing failed. A row is
    written when all of its requests have ended. Raises Resumable when the disk is full."""
    rows = failed = 0
    with _replacing(output) as out, _replacing(errors) as bad:
        out.write(form.head())
        for groups in _groups(journal):
            text, n = form.lines(groups)
            wrong = [line for line in map(form.error, groups) if line]
            rows, failed = rows + n, failed + len(wrong)
            out.write(text)
            bad.write("".join(wrong))
    if not failed:
        errors.unlink(missing_ok=True)
    _mark(journal)
    return Written(rows, failed)


def _mark(journal: Journal) -> None:
    """If that was all of it, the next run may forget what is in it."""
    if journal.count("line") == journal.count("results"):
        journal.put("output written", "1")
        journal.commit()


def _groups(journal: Journal) -> Iterator[list[list[Merged]]]:
    """Blocks of rows, each with its requests side by side, that have all ended."""
    total, fan = int(journal.get("rows")) * int(journal.get("fan")), int(journal.get("fan"))
    for lo, hi in _spans(total, max(4096 // fan, 1) * fan):
        rows = journal.merged(lo, hi)
        groups = [rows[i : i + fan] for i in range(0, len(rows), fan)]
        yield [group for group in groups if all(row.finish for row in group)]


class _Text:
    """A file that is being written; what goes wrong is told of it, not of one beside it."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self._file, self._path = file, path

    def write(self, text: str) -> None:
        with _telling(self._path):
            self._file.write(text)


@contextmanager
def _replacing(path: Path) -> Generator[_Text]:
    """A text file that takes the place of an older one when it is whole."""
    part = path.with_name(f".{path.name}.part")
    with _telling(path):
        file = open(part, "w", encoding="utf-8", newline="")
    try:
        yield _Text(file, path)
        with _telling(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # what is still to be written is given up
            file.close()
        part.unlink(missing_ok=True)
        raise


@contextmanager
def _telling(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise told(path, exc) from exc


def told(path: Path, exc: OSError) -> PrereadError:
    """What a user can do about an output that cannot be written."""
    if exc.errno == errno.ENOSPC:
        return Resumable(
            f"{path}: the disk is full; all results are in the journal.",
            hint="Free some space, then the same command with --resume.",
        )
    return SourceError(
        f"{path}: cannot be written: {exc.strerror or exc}.", hint="Give another --output."
    )


def _spans(total: int, step: int = 4096) -> Iterator[tuple[int, int]]:
    """[lo, hi) over all requests."""
    yield from ((lo, min(lo + step, total)) for lo in range(0, total, step))
