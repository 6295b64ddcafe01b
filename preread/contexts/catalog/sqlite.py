"""The catalog on SQLite: one file in the home, shared by threads and processes (sqlite_file.py).
Texts are compressed and kept once under their digest."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from json import dumps, loads
from pathlib import Path

from preread.contexts.catalog.base import ContextRecord, ContextSummary, Hints, Standing
from preread.contexts.catalog.codec import (
    compress,
    decompress,
    pack,
    summary_of,
    unpack,
)
from preread.contexts.catalog.conflicts import (
    published_first,
    removed_meanwhile,
    session_has_grown,
)
from preread.contexts.catalog.hints import NoHints
from preread.contexts.catalog.sqlite_file import SqliteFile

SUMMARY = """
    SELECT c.name, version, model, fingerprint, tokens, shards, sources, kv_bytes, created_at,
           expires_at, coalesce(last_used, created_at), invalidated
    FROM contexts c LEFT JOIN names n ON n.name = c.name
    WHERE version = (SELECT max(version) FROM contexts WHERE name = c.name) ORDER BY c.name
"""


@dataclass(frozen=True, slots=True)
class SqliteCatalog:
    """See catalog/base.py. path: the database file, made on the first write; busy_timeout_s: how
    long to wait for another process's transaction."""

    path: Path
    busy_timeout_s: float = 30.0

    @property
    def _file(self) -> SqliteFile:
        return SqliteFile(self.path, self.busy_timeout_s)

    def get(self, name: str, version: int | None = None) -> ContextRecord | None:
        with self._file.read() as db:
            row = db.execute(
                "SELECT body, version, invalidated FROM contexts WHERE name = ?1 AND version = "
                "coalesce(?2, (SELECT max(version) FROM contexts WHERE name = ?1))",
                (name, version),
            ).fetchone()
            if row is None:
                return None
            texts = dict(
                db.execute(
                    "SELECT digest, body FROM texts JOIN uses USING (digest) "
                    "WHERE name = ? AND version = ?",
                    (name, row[1]),
                )
            )
            record = unpack(row[0], lambda digest: decompress(texts[digest]))
        return replace(record, invalidated=row[2])

    def put(self, record: ContextRecord, *, expected: int) -> None:
        if record.version != expected + 1:
            raise ValueError(f"version {record.version} does not follow {expected}")
        body, texts = pack(record)
        with self._file.write() as db:
            newest = _newest(db, record.name)
            if newest != expected:
                raise published_first(record.name, newest, expected)
            db.execute(
                f"INSERT INTO contexts VALUES ({', '.join('?' * 13)})", _columns(record, body)
            )
            db.executemany(
                "INSERT OR IGNORE INTO texts VALUES (?, ?)",
                ((digest, compress(text)) for digest, text in texts.items()),
            )
            db.executemany(
                "INSERT INTO uses VALUES (?, ?, ?)",
                ((record.name, record.version, digest) for digest in texts),
            )

    def invalidate(self, name: str, reason: str) -> bool:
        with self._file.write() as db:
            changed = db.execute(
                "UPDATE contexts SET invalidated = ? WHERE name = ? AND version = ?",
                (reason or "no reason given", name, _newest(db, name)),
            )
            return changed.rowcount > 0

    def standing(self, held: Sequence[tuple[str, int]]) -> list[Standing]:
        query = "SELECT invalidated FROM contexts WHERE name = ? AND version = ?"
        with self._file.read() as db:
            reasons = [db.execute(query, one).fetchone() for one in held]
            newest = [_newest(db, name) for name, _ in held]
        pairs = zip(newest, reasons, strict=True)
        return [Standing(version, row[0] if row else "") for version, row in pairs]

    def remove(self, name: str, *, below: int | None = None) -> int:
        with self._file.write() as db:
            where, values = "name = ?", [name, *([] if below is None else [below])]
            if below is not None:
                where += " AND version < ?"
            gone = db.execute(f"DELETE FROM contexts WHERE {where}", values).rowcount
            db.execute(f"DELETE FROM uses WHERE {where}", values)
            db.execute("DELETE FROM texts WHERE digest NOT IN (SELECT digest FROM uses)")
            if below is None:
                db.execute("DELETE FROM names WHERE name = ?", (name,))
                db.execute("DELETE FROM turns WHERE context = ?", (name,))
            return gone

    def summaries(self) -> list[ContextSummary]:
        with self._file.read() as db:
            return [ContextSummary(*row) for row in db.execute(SUMMARY)]

    def touch(self, name: str, when: float) -> None:
        with self._file.write() as db:
            db.execute(
                "INSERT INTO names SELECT ?1, ?2 WHERE EXISTS "
                "(SELECT 1 FROM contexts WHERE name = ?1) "
                "ON CONFLICT (name) DO UPDATE SET last_used = max(last_used, excluded.last_used)",
                (name, when),
            )

    def live_chunks(self, now: float = 0.0) -> frozenset[str]:
        query = (
            "SELECT chunks FROM contexts "
            "WHERE invalidated = '' AND (expires_at IS NULL OR expires_at > ?)"
        )
        with self._file.read() as db:
            rows = db.execute(query, (now,))
            return frozenset(key for (blob,) in rows for key in loads(decompress(blob)))

    def sessions(self, name: str) -> Sequence[str]:
        with self._file.read() as db:
            rows = db.execute(
                "SELECT DISTINCT session FROM turns WHERE context = ? ORDER BY session", (name,)
            )
            return [session for (session,) in rows]

    def session(self, context: str, session: str) -> tuple[tuple[str, str], ...]:
        with self._file.read() as db:
            return tuple(
                db.execute(
                    "SELECT question, answer FROM turns WHERE context = ? AND session = ? "
                    "ORDER BY at",
                    (context, session),
                )
            )

    def append_turn(self, context: str, session: str, turn: tuple[str, str], *, at: int) -> None:
        with self._file.write() as db:
            if not _newest(db, context):  # else a later context of that name would inherit it
                raise removed_meanwhile(context)
            (length,) = db.execute(
                "SELECT count(*) FROM turns WHERE context = ? AND session = ?", (context, session)
            ).fetchone()
            if length != at:
                raise session_has_grown(context, session, length, at)
            db.execute("INSERT INTO turns VALUES (?, ?, ?, ?, ?)", (context, session, at, *turn))

    def epochs(self, scopes: Sequence[str]) -> list[int]:
        asked = "SELECT epoch FROM epochs WHERE scope = ?"
        with self._file.read() as db:
            rows = [db.execute(asked, (scope,)).fetchone() for scope in scopes]
        return [int(row[0]) if row else 0 for row in rows]

    def bump(self, scope: str) -> int:
        with self._file.write() as db:
            (epoch,) = db.execute(
                "INSERT INTO epochs VALUES (?, 1) "
                "ON CONFLICT (scope) DO UPDATE SET epoch = epoch + 1 RETURNING epoch",
                (scope,),
            ).fetchone()
            return int(epoch)

    def listen(self) -> Hints:
        return NoHints()  # asking the file is as cheap as a message


def _newest(db: sqlite3.Connection, name: str) -> int:
    query = "SELECT coalesce(max(version), 0) FROM contexts WHERE name = ?"
    return int(db.execute(query, (name,)).fetchone()[0])


def _columns(record: ContextRecord, body: bytes) -> tuple[object, ...]:
    shown = summary_of(record)
    return (
        shown.name,
        shown.version,
        shown.model,
        shown.fingerprint,
        shown.tokens,
        shown.shards,
        shown.sources,
        shown.kv_bytes,
        shown.created_at,
        shown.expires_at,
        shown.invalidated,
        compress(dumps(record.chunk_keys)),
        body,
    )
