"""The file of the SQLite catalog: how it is opened, transactions, and what to do where it cannot.

WAL, so that readers never wait for a builder; every change is one BEGIN IMMEDIATE transaction, so
that compare-and-swap holds between processes; a connection lives for one call, so that there is
nothing to share and nothing to close.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from preread.contexts.catalog.conflicts import no_unicode
from preread.contexts.catalog.schema import create, in_memory, migrate, needs_migration
from preread.errors import HomeError


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """path, busy_timeout_s: see SqliteCatalog. Raises HomeError or UsageError, also for what SQLite
    or the file system raises within a transaction."""

    path: Path
    busy_timeout_s: float

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One snapshot. A home without a catalog reads as an empty one and stays untouched."""
        with self._guard(), closing(self._open_to_read()) as db:
            db.execute("BEGIN")
            yield db

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all or nothing, one writer at a time."""
        with self._guard():
            if not self.path.exists():
                create(self.path)
            with closing(self._open()) as db:
                migrate(db, self.path)
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                except BaseException:
                    db.rollback()
                    raise
                db.commit()

    def _open(self, options: str = "") -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}{options}"
        return sqlite3.connect(uri, uri=True, timeout=self.busy_timeout_s, isolation_level=None)

    def _open_to_read(self) -> sqlite3.Connection:
        """WAL wants to write beside the file; on a read-only medium the ways to do without are
        tried in turn (immutable is the last: it holds when nobody can be writing)."""
        if not self.path.exists():
            empty = sqlite3.connect(":memory:", isolation_level=None)
            migrate(empty, self.path)
            return empty
        refusals: list[sqlite3.OperationalError] = []
        for options in ("", "?mode=ro", "?mode=ro&immutable=1"):
            db = self._open(options)
            try:
                if options and needs_migration(db):
                    db = in_memory(db)  # of an earlier release, and nobody may change it
                migrate(db, self.path)
                return db
            except sqlite3.OperationalError as exc:
                db.close()
                refusals.append(exc)
                if "locked" in str(exc):
                    break
            except BaseException:
                db.close()
                raise
        raise refusals[0]

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """The border: foreign errors become HomeError with what to do."""
        try:
            yield
        except OSError as exc:
            raise HomeError(
                f"{self.path.parent}: {exc.strerror}.", hint="Set PREREAD_HOME to another folder."
            ) from exc
        except UnicodeEncodeError as exc:
            raise no_unicode(exc) from exc
        except sqlite3.OperationalError as exc:
            raise _operational(self.path, exc, self.busy_timeout_s) from exc
        except (sqlite3.DatabaseError, zlib.error, KeyError, ValueError, TypeError) as exc:
            raise HomeError(
                f"{self.path}: damaged ({exc}).",
                hint=f"Move it away and build again (kept KV is found again by content): "
                f"mv {self.path} {self.path}.damaged",
            ) from exc


def _operational(path: Path, exc: sqlite3.OperationalError, waited_s: float) -> HomeError:
    text = str(exc)
    if "locked" in text or "busy" in text:
        error = HomeError(
            f"{path}: another process has held the catalog for {waited_s:g} s.",
            hint="Wait for it, or raise context.busy_timeout_s.",
        )
        error.retryable = True
        return error
    if "readonly" in text or "unable to open" in text:
        return HomeError(
            f"{path}: this home cannot be written.",
            hint="Mend its permissions, or set PREREAD_HOME to another folder.",
        )
    if "full" in text:
        return HomeError(
            f"{path}: the disk is full.",
            hint="Free some space (preread gc), or set PREREAD_HOME to another folder.",
        )
    return HomeError(f"{path}: {text}.", hint="See: preread doctor")
