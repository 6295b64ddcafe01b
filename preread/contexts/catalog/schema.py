"""The schema of the SQLite catalog and the way up to it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from preread.errors import HomeError

MIGRATIONS = (  # MIGRATIONS[n] leads from schema n to n + 1; never edited once released
    """
    CREATE TABLE contexts (
        name TEXT NOT NULL, version INTEGER NOT NULL, model TEXT NOT NULL,
        fingerprint TEXT NOT NULL, tokens INTEGER NOT NULL, shards INTEGER NOT NULL,
        sources INTEGER NOT NULL, kv_bytes INTEGER NOT NULL, created_at REAL NOT NULL,
        expires_at REAL, invalidated TEXT NOT NULL, chunks BLOB NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (name, version)
    );
    CREATE TABLE texts (digest TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE uses (
        name TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL,
        PRIMARY KEY (name, version, digest)
    ) WITHOUT ROWID;
    CREATE TABLE names (name TEXT PRIMARY KEY, last_used REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE turns (
        context TEXT NOT NULL, session TEXT NOT NULL, at INTEGER NOT NULL,
        question TEXT NOT NULL, answer TEXT NOT NULL, PRIMARY KEY (context, session, at)
    ) WITHOUT ROWID
    """,
    "CREATE TABLE epochs (scope TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID",
)


def create(path: Path) -> None:
    """An empty catalog, visible complete or not at all: switching a database to WAL while others
    open it fails for one of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as db:
            migrate(db, path)
            db.execute("PRAGMA journal_mode = WAL")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another process was first
        except OSError:  # a file system without hard links
            if not path.exists():
                draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring an open database to this release's schema; nothing happens when it is there. Raises
    HomeError for a file of a later release or of another program."""
    schema = _schema(db)
    if schema > len(MIGRATIONS):
        raise HomeError(
            f"{path}: written by a newer preread (schema {schema}, this one knows "
            f"{len(MIGRATIONS)}).",
            hint="Upgrade: pip install -U preread; or set PREREAD_HOME to another folder.",
        )
    if schema == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        schema = _schema(db)  # another process may have been first
        if schema == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise HomeError(
                f"{path}: a database of another program.",
                hint="Set PREREAD_HOME to another folder.",
            )
        for step in range(schema, len(MIGRATIONS)):
            for statement in MIGRATIONS[step].split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {step + 1}")
    except BaseException:
        db.rollback()
        raise
    db.commit()


def in_memory(db: sqlite3.Connection) -> sqlite3.Connection:
    """A copy, for a database that nobody may change; closes `db`."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    with closing(db):
        db.backup(copy)
    return copy


def needs_migration(db: sqlite3.Connection) -> bool:
    """Written by an earlier release."""
    return 0 < _schema(db) < len(MIGRATIONS)


def _schema(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
