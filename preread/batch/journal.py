"""The run as a file: what was asked, in which order it runs, and what has come back. SQLite in WAL
mode, held by one process; a kill -9 at any moment leaves it whole, less what was not yet committed.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from preread.batch.keys import Keyed, model_digest, prefix_json
from preread.batch.schema import IN_ORDER, LOST, MERGED, NEXT, TABLES, Merged, Result, Waiting
from preread.batch.table import Rows
from preread.errors import PrereadError, Resumable, StateError

FORMAT = 2
COMMIT_S = 0.5


class Journal:
    """Not thread-safe: one thread at a time. Every method but `open` and `close` raises Resumable
    when the disk is full: what was committed stays, and a later run goes on from there."""

    def __init__(self, path: Path, connection: sqlite3.Connection, commit_s: float) -> None:
        self.path = path
        self.commit_s = commit_s
        self._by_completion = False  # remember in which order results come
        self.on_commit: Callable[[], None] | None = None
        self._db = connection
        self._committed = time.monotonic()

    @staticmethod
    def open(path: Path, *, commit_s: float = COMMIT_S, most_pages: int = 0) -> Journal:
        """The journal at a path, made if there is none. commit_s: results wait no longer than this
        to be kept, where `tick` is called as often. most_pages: of 4 KiB, 0 is no limit.
        Raises StateError: in use by another process, or not ours."""
        try:
            connection = sqlite3.connect(
                path, timeout=0.0, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as exc:
            raise _told(path, exc) from exc
        journal = Journal(path, connection, commit_s)
        try:
            journal._take(most_pages)
        except sqlite3.OperationalError as exc:
            connection.close()
            if "locked" in str(exc):
                raise StateError(
                    f"{path}: another process is running this batch.",
                    hint="Wait for it, or give another --journal.",
                ) from exc
            raise _told(path, exc) from exc
        except sqlite3.DatabaseError as exc:
            connection.close()
            raise StateError(f"{path}: {exc}.", hint="Give another --journal.") from exc
        except PrereadError:
            connection.close()
            raise
        return journal

    def _take(self, most_pages: int) -> None:
        # One process, one connection: the lock is kept, and WAL needs no shared memory.
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA temp_store = FILE")
        self._db.execute("PRAGMA cache_size = -65536")  # KiB
        if most_pages:
            self._db.execute(f"PRAGMA max_page_count = {most_pages}")
        self._db.execute("BEGIN IMMEDIATE")
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
        if not tables:
            for statement in TABLES.split(";")[:-1]:
                self._db.execute(statement)
            self.put("format", str(FORMAT))
        elif "meta" not in tables or self.get("format") != str(FORMAT):
            self._db.execute("ROLLBACK")
            raise StateError(
                f"{self.path} is no journal of this release.", hint="Give another --journal."
            )
        self.commit()

    # What was asked.

    @property
    def planned(self) -> bool:
        """The whole input was read and put in order."""
        return self.get("planned") == "1"

    def clear(self) -> None:
        """Forget everything."""
        with self._whole():
            names = [name for (name,) in self._db.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )]  # fmt: skip
            for name in names:
                self._db.execute(f"DELETE FROM {name} WHERE true")
            self.put("format", str(FORMAT))
        self.commit()

    def add(self, start: int, rows: Rows, keyed: Keyed) -> None:
        """Requests from number `start` on."""
        with self._whole():
            new = {order.key: order for order in rows.orders}
            self._db.executemany(
                "INSERT OR IGNORE INTO models VALUES (?, ?)",
                [(model_digest(order.model), order.model) for order in new.values()],
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO orders VALUES (?, ?)",
                [(key, order.to_json()) for key, order in new.items()],
            )
            heads = dict(zip(keyed.prefixes, rows.prefixes, strict=True))
            known = self._keys("prefixes", list(heads))
            begun = [(key, prefix_json(head)) for key, head in heads.items() if key not in known]
            self._db.executemany(
                "INSERT INTO prefixes VALUES (?, ?, ?)",
                [(key, len(body.encode()), body) for key, body in begun],
            )
            self._db.executemany(
                "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                zip(
                    range(start, start + len(rows)), rows.ids, rows.files, rows.lines,
                    keyed.digests, keyed.places, keyed.orders, keyed.prefixes,
                    map(len, rows.texts), rows.texts, rows.carry, strict=True,
                ),
            )  # fmt: skip

    def put_in_order(self) -> None:
        """Find twins and the order in which the others run."""
        with self._whole():
            for statement in IN_ORDER:
                self._db.execute(statement)
            self.put("planned", "1")
        self.commit()

    def twice(self, most: int) -> list[tuple[str, list[tuple[int, int]]]]:
        """Custom ids that more than one request has, with (file, line) of the first few."""
        found = self._db.execute(
            "SELECT id FROM requests WHERE id != '' GROUP BY id HAVING count(*) > 1 "
            "ORDER BY min(idx) LIMIT ?", (most,),
        ).fetchall()  # fmt: skip
        where = "SELECT file, line FROM requests WHERE id = ? ORDER BY idx LIMIT 3"
        return [(name, self._db.execute(where, (name,)).fetchall()) for (name,) in found]

    def asked(self, lo: int, hi: int) -> list[tuple[bytes, str, str]]:
        """(digest, id, carry) of requests [lo, hi)."""
        sql = "SELECT digest, id, carry FROM requests WHERE idx >= ? AND idx < ? ORDER BY idx"
        return self.read(sql, lo, hi)

    # What runs, and what came back.

    def next(self, after: int, model: bytes, most: int) -> list[Waiting]:
        """Requests of a model behind place `after` in the line that have no result."""
        with self._whole():
            return [Waiting(*row) for row in self._db.execute(NEXT, (after, model, most))]

    def record(self, results: Sequence[Result]) -> None:
        """Committed at the next `tick` that finds them old enough."""
        with self._whole():
            self._db.executemany(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                results,
            )
            if self._by_completion:
                self._db.executemany(
                    "INSERT INTO finished (idx) VALUES (?)", [(result[0],) for result in results]
                )

    def tick(self) -> None:
        if time.monotonic() - self._committed >= self.commit_s:
            self.commit()

    def by_completion(self) -> None:
        """From now on it is kept in which order results come; those that are there come first."""
        with self._whole():
            self._db.execute(
                "INSERT INTO finished (idx) SELECT idx FROM results "
                "WHERE idx NOT IN (SELECT idx FROM finished) ORDER BY idx"
            )
        self._by_completion = True

    def retry(self) -> int:
        """Forget failed results, but not what they cost; returns how many."""
        with self._whole():
            self._db.execute(LOST)
            gone = self._db.execute("DELETE FROM results WHERE finish = 'error'").rowcount
            self.put("output written", "")
            self._db.execute("DELETE FROM finished WHERE idx NOT IN (SELECT idx FROM results)")
        self.commit()
        return gone

    def lose(self, model: bytes, *counts: int) -> None:
        """So much was billed (cached, computed, output, written) that no result counts."""
        with self._whole():
            self._db.execute("INSERT INTO lost VALUES (?, ?, ?, ?, ?)", (model, *counts))

    def merged(self, lo: int, hi: int) -> list[Merged]:
        """Requests [lo, hi) of the input with their results."""
        return [Merged(*row) for row in self.read(MERGED, lo, hi)]

    def read(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Figures for plans and reports."""
        with self._whole():
            return self._db.execute(sql, values).fetchall()

    def body(self, table: str, key: bytes) -> str:
        """Of an order or a prefix, as JSON."""
        sql = f"SELECT body FROM {table} WHERE key = ?"
        ((text,),) = self.read(sql, key)
        return str(text)

    def count(self, table: str, where: str = "true") -> int:
        ((n,),) = self.read(f"SELECT count(*) FROM {table} WHERE {where}")
        return int(n)

    # The file itself.

    def get(self, key: str) -> str:
        """ "" if it was never put."""
        rows = self.read("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else ""

    def put(self, key: str, value: str) -> None:
        with self._whole():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def commit(self) -> None:
        """Keep all that was recorded; a new transaction begins."""
        with self._whole():
            if self._db.in_transaction:
                self._db.execute("COMMIT")
            self._db.execute("BEGIN IMMEDIATE")
        self._committed = time.monotonic()
        if self.on_commit:
            self.on_commit()

    def close(self) -> None:
        """Commit what can be, and let go of the file. Idempotent."""
        try:
            if self._db.in_transaction:
                self._db.execute("COMMIT")
        except sqlite3.Error:
            pass  # full: what was committed before stays
        self._db.close()

    def check(self) -> None:
        """Every request runs once or is the twin of one that does; every result is of one that
        runs. For tests."""
        (whole,) = self._db.execute("PRAGMA integrity_check").fetchone()
        assert whole == "ok", whole
        ran = {idx for (idx,) in self._db.execute("SELECT idx FROM line")}
        twins = dict(self._db.execute("SELECT idx, first FROM twins"))
        asked = {idx for (idx,) in self._db.execute("SELECT idx FROM requests")}
        done = {idx for (idx,) in self._db.execute("SELECT idx FROM results")}
        if self.planned:
            assert ran | twins.keys() == asked and not ran & twins.keys()
            assert set(twins.values()) <= ran and done <= ran

    def _keys(self, table: str, keys: list[bytes]) -> set[bytes]:
        """Those that are there."""
        sql = f"SELECT 1 FROM {table} WHERE key = ?"
        return {key for key in keys if self._db.execute(sql, (key,)).fetchone()}

    @contextmanager
    def together(self) -> Generator[None]:
        """What is written inside is kept whole or not at all; nothing may be committed inside."""
        with self._whole():
            self._db.execute("SAVEPOINT together")
            try:
                yield
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk may have undone all of it
                    self._db.execute("ROLLBACK TO together")
                raise
            self._db.execute("RELEASE together")

    @contextmanager
    def _whole(self) -> Generator[None]:
        try:
            yield
        except sqlite3.OperationalError as exc:
            raise _told(self.path, exc) from exc
        except sqlite3.DatabaseError as exc:
            hint = "Begin anew with --fresh, or give another --journal."
            raise StateError(f"{self.path} is damaged: {exc}.", hint=hint) from exc


def _told(path: Path, exc: sqlite3.OperationalError) -> PrereadError:
    if "full" in str(exc) or "I/O" in str(exc):
        return Resumable(
            f"{path}: {exc}. What was committed is kept.",
            hint="Free some space, then the same command with --resume.",
        )
    return StateError(f"{path}: {exc}.", hint="Check the folder's permissions.")
