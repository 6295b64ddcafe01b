"""Answers in a SQLite file: bounded in bytes and age, shared by processes. Each row has a sum over
its key and body, so that what is damaged is a miss and never another answer."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from preread.errors import StateError

FORMAT = 1  # PRAGMA user_version
BUSY_S = 5.0  # wait for another process's transaction
LOOK = 500  # keys of one statement
LEAVE = 0.9  # of the bytes, when there were too many

TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, made REAL NOT NULL, "
    "used REAL NOT NULL, size INTEGER NOT NULL, sum BLOB NOT NULL, body BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS by_use ON answers (used, size)",  # bounded without a look at bodies
    "CREATE INDEX IF NOT EXISTS by_age ON answers (made)",
    "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, scope BLOB NOT NULL, "
    "sum BLOB NOT NULL, question TEXT NOT NULL, vector BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS by_scope ON vectors (scope)",
)

log = logging.getLogger("preread")


class Vector(NamedTuple):
    """Of a question whose answer is under `key`: float32, of length 1."""

    key: bytes
    question: str
    vector: bytes


class Book:
    """Not thread-safe: one thread at a time. A file that fails while it is used is left alone from
    then on: everything is a miss."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, most: int, age_s: float,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.path = path
        self._db = connection
        self._most = most
        self._age_s = age_s
        self._clock = clock
        self._broken = False

    @staticmethod
    def open(
        path: Path, *, most: int, age_s: float, clock: Callable[[], float] = time.time
    ) -> Book:
        """most: bytes of answers; age_s: older ones are not given. Raises StateError for a file
        that is damaged or not ours."""
        try:
            db = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(db, path)
            except BaseException:
                db.close()
                raise
        except sqlite3.Error as exc:
            raise StateError(
                f"The response cache {path}: {exc}.", hint=f"Remove it: rm {path}"
            ) from exc
        return Book(path, db, most, age_s, clock)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The bodies that are there, whole and young enough."""
        found: dict[bytes, bytes] = {}
        wrong: list[bytes] = []
        oldest = self._clock() - self._age_s
        with _Guard(self) as guard:
            for lo in range(0, len(keys), LOOK):
                some = keys[lo : lo + LOOK]
                marks = ",".join("?" * len(some))
                sql = f"SELECT key, made, sum, body FROM answers WHERE key IN ({marks})"
                for key, made, check, body in self._db.execute(sql, some):
                    if check != _sum(key, body):
                        wrong.append(key)
                    elif made >= oldest:
                        found[key] = body
            self._touch(found, wrong)
        return {} if guard.failed else found

    def put(
        self, bodies: Mapping[bytes, bytes], vectors: Iterable[tuple[bytes, Vector]] = ()
    ) -> None:
        """vectors: with the scope of each."""
        now = self._clock()
        with _Guard(self):
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)",
                [(k, now, now, len(body), _sum(k, body), body) for k, body in bodies.items()],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)",
                [
                    (v.key, scope, _sum(scope, v.key, v.question.encode(), v.vector), v.question,
                     v.vector)
                    for scope, v in vectors
                ],
            )  # fmt: skip
            self._bound()
            self._db.execute("COMMIT")

    def vectors(self, scope: bytes) -> list[Vector]:
        """Of all questions of a scope."""
        sql = "SELECT key, question, vector, sum FROM vectors WHERE scope = ?"
        with _Guard(self):
            return [
                Vector(key, question, vector)
                for key, question, vector, check in self._db.execute(sql, (scope,))
                if check == _sum(scope, key, question.encode(), vector)
            ]
        return []

    def nbytes(self) -> int:
        with _Guard(self):
            return int(self._db.execute("SELECT coalesce(sum(size), 0) FROM answers").fetchone()[0])
        return 0

    def close(self) -> None:
        self._broken = True
        self._db.close()

    def _touch(self, found: Mapping[bytes, bytes], wrong: Sequence[bytes]) -> None:
        if wrong:
            log.warning("%s: %d damaged answers are dropped", self.path, len(wrong))
            self._db.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key in wrong])
        if found:
            self._db.execute("BEGIN IMMEDIATE")
            now = self._clock()
            self._db.executemany(
                "UPDATE answers SET used = ? WHERE key = ?", [(now, key) for key in found]
            )
            self._db.execute("COMMIT")

    def _bound(self) -> None:
        """Drop what is too old, then what was not used for the longest time."""
        db = self._db
        db.execute("DELETE FROM answers WHERE made < ?", (self._clock() - self._age_s,))
        (held,) = db.execute("SELECT coalesce(sum(size), 0) FROM answers").fetchone()
        if held > self._most:
            least = self._most * LEAVE
            gone = []
            for key, size in db.execute("SELECT key, size FROM answers ORDER BY used"):
                if held <= least:
                    break
                gone.append((key,))
                held -= size
            db.executemany("DELETE FROM answers WHERE key = ?", gone)
        db.execute("DELETE FROM vectors WHERE key NOT IN (SELECT key FROM answers)")


class _Guard:
    """SQLite's errors become misses, and are told once."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self.failed = False

    def __enter__(self) -> _Guard:
        return self

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> bool:
        if not isinstance(exc, sqlite3.Error):
            return False
        self.failed = True
        book = self._book
        if not book._broken:
            busy = "locked" in str(exc)
            log.warning("The response cache %s: %s; %s", book.path, exc,
                        "passed by once" if busy else "it is left alone from now on")  # fmt: skip
            book._broken = not busy
        try:
            if book._db.in_transaction:
                book._db.execute("ROLLBACK")
        except sqlite3.Error:
            pass
        return True


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Raises StateError, sqlite3.Error."""
    (state,) = db.execute("PRAGMA quick_check(1)").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if state != "ok" or version not in (0, FORMAT) or (tables and version != FORMAT):
        what = "damaged" if state != "ok" else "none of this release"
        raise StateError(f"The response cache {path} is {what}.", hint=f"Remove it: rm {path}")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("BEGIN IMMEDIATE")
    for statement in TABLES:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {FORMAT}")
    db.execute("COMMIT")


def _sum(*parts: bytes) -> bytes:
    made = blake2b(digest_size=16)
    for part in parts:
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.digest()
