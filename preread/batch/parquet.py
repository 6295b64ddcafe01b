"""Rows of a Parquet file. It is read from its end, so what cannot be sought in (a pipe, a packed
file) is laid down in a temporary file first."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from gzip import GzipFile
from typing import IO, Any

from preread.batch.strict import NotFinite, not_finite
from preread.batch.table import Faults
from preread.errors import SourceError

AT_ONCE = 1024  # rows


class _NoText(ValueError):
    """Bytes that are no text: where they stand, and what they are."""


def parquet_rows(
    name: str, file: IO[bytes], faults: Faults
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, its cells), rows from 1. Bytes are texts, as files of older writers have them. Raises
    SourceError for a file that cannot be read."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SourceError(
            f"{name}: Parquet needs pyarrow, which is not installed.",
            hint="pip install 'preread[parquet]'",
        ) from None
    at = 0
    try:
        with _sought(file) as whole, ParquetFile(whole) as table:
            names = table.schema_arrow.names
            if twice := sorted({column for column in names if names.count(column) > 1}):
                raise SourceError(
                    f"{name}: column {twice[0]!r} is there twice.", hint="Rename one."
                )
            kinds = str(table.schema_arrow)
            floats = any(kind in kinds for kind in ("float", "double"))
            for batch in table.iter_batches(batch_size=AT_ONCE):
                for row in batch.to_pylist():
                    at += 1
                    try:
                        value = _texts(row, "") if "binary" in kinds else row
                    except _NoText as exc:
                        faults.add(name, at, *exc.args)
                        continue
                    if floats and (where := not_finite(value)):
                        faults.add(name, at, where, str(NotFinite(where, "NaN or Infinity")))
                    else:
                        yield at, value
    except (pyarrow.ArrowException, OSError, ValueError) as exc:
        if isinstance(exc, OSError) and exc.errno:  # the machine's fault, not the file's
            raise
        raise SourceError(f"{name}: row {at + 1}: {exc}.", hint="Write the file again.") from exc


@contextmanager
def _sought(file: IO[bytes]) -> Generator[IO[bytes]]:
    """The same bytes, where any place can be gone to."""
    packed = isinstance(getattr(file, "raw", None), GzipFile)
    if file.seekable() and not packed:
        yield file
        return
    with tempfile.TemporaryFile() as whole:
        shutil.copyfileobj(file, whole, io.DEFAULT_BUFFER_SIZE * 16)
        whole.seek(0)
        yield whole


def _texts(value: Any, at: str) -> Any:
    """A cell whose bytes are decoded. Raises _NoText."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _NoText(
                at, f"{value[:16]!r} is no UTF-8 text; leave that column out of the file"
            ) from None
    if isinstance(value, dict):
        return {k: _texts(v, f"{at}.{k}" if at else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_texts(v, f"{at}[{i}]") for i, v in enumerate(value)]
    return value
