"""Output as results come: every row once, also in a run that is killed and taken up again.

Results are committed first, then their lines are written, then it is committed how far they go.
What stands in the file behind that point, when a run is taken up, is cut off and written again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from preread.batch.forms import Form
from preread.batch.journal import Journal
from preread.batch.output import told
from preread.batch.schema import MERGED_OF, Merged

AT_ONCE = 1024  # results
_NEXT = "SELECT seq, idx FROM finished WHERE seq > ? ORDER BY seq LIMIT ?"


class Streamed:
    """The output of a journal in the order of completion; failed rows are in the error file only.
    A context manager; while it is open every commit writes what it has kept."""

    def __init__(self, journal: Journal, form: Form, path: Path) -> None:
        """Raises what `told` makes of an OSError."""
        self._journal = journal
        self._form = form
        self._path = path
        self._seq = int(journal.get("streamed seq") or 0)
        self._file = self._opened(int(journal.get("streamed bytes") or 0))

    def __enter__(self) -> Streamed:
        self._journal.by_completion()
        self._journal.on_commit = self.catch_up
        return self

    def __exit__(self, *exc: object) -> None:
        self._journal.on_commit = None
        self._file.close()

    def catch_up(self) -> None:
        """Write the lines of committed results, and remember how far."""
        seq = self._seq
        try:
            while rows := self._journal.read(_NEXT, self._seq, AT_ONCE):
                found = [self._of(idx) for _, idx in rows]
                groups = [[row] for some in found for row in some if row.finish != "error"]
                self._file.write(self._form.lines(groups)[0].encode())
                self._seq = rows[-1][0]
            self._file.flush()
        except OSError as exc:
            raise told(self._path, exc) from exc
        if self._seq != seq:
            self._journal.put("streamed seq", str(self._seq))
            self._journal.put("streamed bytes", str(self._file.tell()))

    def _of(self, idx: int) -> list[Merged]:
        """The request that ran and its twins."""
        return [Merged(*row) for row in self._journal.read(MERGED_OF, idx, idx)]

    def _opened(self, end: int) -> IO[bytes]:
        try:
            if not end or not self._path.exists() or self._path.stat().st_size < end:
                self._seq = 0  # begun anew, or somebody has taken what was written
                file: IO[bytes] = open(self._path, "wb")
                file.write(self._form.head().encode())
                return file
            file = open(self._path, "r+b")
            file.truncate(end)
            file.seek(0, os.SEEK_END)
            return file
        except OSError as exc:
            raise told(self._path, exc) from exc
