"""What the requests of a run that is under way may be billed, beside its journal: written before
each is sent, and so known after a kill -9.

Six sums: input and output tokens of requests without an answer, at most; cached, computed, output
and written tokens (see preread.backend.Billed) of those that were answered. A request's share is
settled when its row's result is committed: the journal then holds what it was, and in the same
transaction how much of the slate that makes. What is written and not settled is in doubt or lost.
A write of 72 bytes in place is a microsecond, and whole or not there at all when the process ends.
"""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Sequence
from operator import add
from pathlib import Path
from typing import NamedTuple

from preread.batch.journal import Journal
from preread.errors import StateError

LAYOUT = struct.Struct("<8s16s6q")  # what it is, whose it is, the sums
MAGIC = b"prslate1"
UNSURE, BILLED = slice(0, 2), slice(2, 6)
KEY = "slate"

Sums = Sequence[int]

log = logging.getLogger("preread")


def path_of(journal: Journal) -> Path:
    return journal.path.with_name(journal.path.name + "-sent")


class Owed(NamedTuple):
    """A share of the slate that is settled, and what it was: unsure: (input, output) tokens that
    stay in doubt; billed: of `Billed`, what no result counts."""

    share: Sums
    unsure: Sums
    billed: Sums


class Slate:
    """Of one model's requests. Invariant: the file holds `sums`."""

    def __init__(self, path: Path, file: int, name: bytes) -> None:
        self.path = path
        self.sums = [0] * 6
        self._file = file
        self._name = name
        self._write()

    @staticmethod
    def open(journal: Journal, model: bytes) -> Slate:
        """A new one; what an earlier session has left is taken over first. model: its digest.
        Raises StateError."""
        recover(journal)
        path, name = path_of(journal), os.urandom(16)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            slate = Slate(path, file, name)
        except OSError as exc:
            raise StateError(f"{path}: {exc.strerror}.", hint="Give another --journal.") from exc
        journal.put(KEY, json.dumps([name.hex(), model.hex(), slate.sums]))
        journal.commit()
        return slate

    def add(self, share: Sums) -> None:
        """Write down; what is taken back is below 0. Raises OSError: then it is not there."""
        before, sums = self.sums, list(map(add, self.sums, share))
        self.sums = sums
        try:
            self._write()
        except OSError:
            self.sums = before
            raise

    def close(self, journal: Journal) -> None:
        """Remove it, if all of it is settled and committed; else the next session does."""
        os.close(self._file)
        told = journal.get(KEY)
        if told and json.loads(told)[2] == self.sums:
            _forget(journal)

    def _write(self) -> None:
        os.pwrite(self._file, LAYOUT.pack(MAGIC, self._name, *self.sums), 0)


def settle(journal: Journal, model: bytes, owed: Owed) -> None:
    """In the transaction of the results that were waited for."""
    _keep(journal, model, owed.unsure, owed.billed)
    name, whose, settled = json.loads(journal.get(KEY))
    settled = [a + b for a, b in zip(settled, owed.share, strict=True)]
    journal.put(KEY, json.dumps([name, whose, settled]))


def recover(journal: Journal) -> None:
    """Take over what a session that was killed has left: in doubt at its most, and billed what was
    answered and not kept. Raises StateError when something else has the slate's name."""
    path, told = path_of(journal), journal.get(KEY)
    found = _read(path)
    if told:
        name, model, settled = json.loads(told)
        if found is None or found[0] != bytes.fromhex(name):
            log.warning(
                "%s is gone: what the last session may have been billed for requests that were not "
                "answered is not known, and counted nowhere.", path,
            )  # fmt: skip
        else:
            left = [a - b for a, b in zip(found[1], settled, strict=True)]
            _keep(journal, bytes.fromhex(model), left[UNSURE], left[BILLED])
    if told or found:
        _forget(journal)


def unsure(journal: Journal, model: bytes) -> tuple[int, int]:
    """(input, output) tokens of a model's requests that were sent and not answered."""
    given, output = json.loads(journal.get(_key(model)) or "[0, 0]")
    return given, output


def unsure_in_all(journal: Journal) -> int:
    """Tokens of all models."""
    told = journal.read("SELECT value FROM meta WHERE key LIKE 'unsure %'")
    return sum(sum(json.loads(value)) for (value,) in told)


def _keep(journal: Journal, model: bytes, more: Sums, billed: Sums) -> None:
    if any(more):
        sums = [a + b for a, b in zip(unsure(journal, model), more, strict=True)]
        journal.put(_key(model), json.dumps(sums))
    if any(billed):
        cached, computed, output, written = billed
        journal.lose(model, cached, computed, output, written)


def _key(model: bytes) -> str:
    return f"unsure {model.hex()}"


def _read(path: Path) -> tuple[bytes, list[int]] | None:
    """Whose it is, and the sums. Raises StateError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StateError(f"{path}: {exc.strerror}.", hint="Give another --journal.") from exc
    if not data:
        return None
    if len(data) != LAYOUT.size or not data.startswith(MAGIC):
        raise StateError(
            f"{path} is no file of a run.", hint="Move it away, or give another --journal."
        )
    _, name, *sums = LAYOUT.unpack(data)
    return name, sums


def _forget(journal: Journal) -> None:
    """First in the journal: a slate that nobody names counts nowhere."""
    journal.put(KEY, "")
    journal.commit()
    path_of(journal).unlink(missing_ok=True)
