"""The SQLite catalog: the common suite, and what can happen to a file."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from preread.contexts.catalog.base import Catalog
from preread.contexts.catalog.schema import MIGRATIONS
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.catalog.sqlite_file import SqliteFile
from preread.errors import CatalogConflict, HomeError
from preread.testing.conformance_catalog import CatalogConformance, record
from tests.contexts.catalog.racing import race


class TestSqliteCatalog(CatalogConformance):
    def open(self, place: Path) -> Catalog:
        return SqliteCatalog(place / "home" / "catalog.sqlite")


@pytest.fixture
def catalog(tmp_path: Path) -> SqliteCatalog:
    return SqliteCatalog(tmp_path / "home" / "catalog.sqlite", busy_timeout_s=0.05)


def test_reading_an_absent_home_does_not_make_one(catalog: SqliteCatalog) -> None:
    assert catalog.summaries() == []
    assert not catalog.path.parent.exists()


def test_texts_are_compressed_and_kept_once(catalog: SqliteCatalog) -> None:
    text = "The same line again and again.\n" * 20_000
    catalog.put(record(text=text), expected=0)
    catalog.put(record("second", text=text), expected=0)
    with closing(sqlite3.connect(catalog.path)) as db:
        (texts,) = db.execute("SELECT count(*) FROM texts").fetchone()
    assert texts == 4  # two documents and two shards
    assert catalog.path.stat().st_size < len(text) / 4
    catalog.remove("handbook")
    assert catalog.get("second") == record("second", text=text)
    catalog.remove("second")
    with closing(sqlite3.connect(catalog.path)) as db:
        assert db.execute("SELECT count(*) FROM texts").fetchone() == (0,)


def test_it_is_in_wal_mode_and_of_this_schema(catalog: SqliteCatalog) -> None:
    catalog.put(record(), expected=0)
    with closing(sqlite3.connect(catalog.path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_a_failed_publication_leaves_nothing(catalog: SqliteCatalog) -> None:
    catalog.put(record(), expected=0)
    before = catalog.path.read_bytes()
    with pytest.raises(CatalogConflict):
        catalog.put(record(version=1, text="unseen"), expected=0)
    assert catalog.path.read_bytes() == before


@pytest.mark.parametrize("damage", ["text", "truncated", "flipped"])
def test_a_damaged_file_is_named(catalog: SqliteCatalog, damage: str) -> None:
    catalog.put(record(text="x" * 40_000), expected=0)
    data = bytearray(catalog.path.read_bytes())
    if damage == "text":
        data = bytearray(b"this is no database, whatever its name says\n" * 200)
    elif damage == "truncated":
        del data[len(data) // 2 :]
    else:
        data[4096:] = bytes(b ^ 0x55 for b in data[4096:])
    catalog.path.write_bytes(data)
    with pytest.raises(HomeError, match=r"mv .*catalog\.sqlite"):
        catalog.get("handbook")


def test_a_damaged_record_is_named(catalog: SqliteCatalog) -> None:
    catalog.put(record(), expected=0)
    with closing(sqlite3.connect(catalog.path)) as db, db:
        db.execute("UPDATE texts SET body = x'00'")
    with pytest.raises(HomeError, match="damaged"):
        catalog.get("handbook")


def test_a_later_schema_is_refused(catalog: SqliteCatalog) -> None:
    catalog.put(record(), expected=0)
    with closing(sqlite3.connect(catalog.path)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 6}")
    for use in (catalog.summaries, lambda: catalog.remove("handbook")):
        with pytest.raises(HomeError, match="newer preread"):
            use()


def test_a_foreign_database_is_refused(catalog: SqliteCatalog) -> None:
    catalog.path.parent.mkdir()
    with closing(sqlite3.connect(catalog.path)) as db, db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(HomeError, match="another program"):
        catalog.put(record(), expected=0)


def test_a_file_left_empty_by_a_crash_is_taken_over(catalog: SqliteCatalog) -> None:
    catalog.path.parent.mkdir()
    catalog.path.touch()
    assert catalog.summaries() == []
    catalog.put(record(), expected=0)
    assert catalog.get("handbook") == record()


def test_a_transaction_held_too_long_is_said(catalog: SqliteCatalog) -> None:
    catalog.put(record(), expected=0)
    with closing(sqlite3.connect(catalog.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(HomeError, match="another process") as caught:
            catalog.invalidate("handbook", "x")
        assert caught.value.retryable
        assert catalog.get("handbook") == record()  # readers do not wait


def test_a_file_system_without_hard_links(
    catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    catalog.put(record(), expected=0)
    assert catalog.get("handbook") == record()
    assert [p.name for p in catalog.path.parent.iterdir()] == ["catalog.sqlite"]


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a folder")
    catalog = SqliteCatalog(tmp_path / "home" / "catalog.sqlite")
    with pytest.raises(HomeError, match="PREREAD_HOME"):
        catalog.put(record(), expected=0)


@contextmanager
def powerless() -> Iterator[None]:
    """Without root's way around permissions."""
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(uid)


def test_a_read_only_home_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        home = Path(folder) / "home"
        catalog = SqliteCatalog(home / "catalog.sqlite")
        catalog.put(record(), expected=0)
        os.chmod(folder, 0o755)
        catalog.path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        home.chmod(0o555)
        with powerless():
            assert catalog.get("handbook") == record()
            assert [s.name for s in catalog.summaries()] == ["handbook"]
            for write in (
                lambda: catalog.touch("handbook", 1.0),
                lambda: catalog.put(record("new"), expected=0),
            ):
                with pytest.raises(HomeError, match=r"cannot be written.*PREREAD_HOME"):
                    write()
        home.chmod(0o755)


def earlier(path: Path, schema: int) -> None:
    """Make a catalog look as an earlier release left it."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE epochs")
        db.execute(f"PRAGMA user_version = {schema}")


def test_a_catalog_of_an_earlier_release_is_taken_up(catalog: SqliteCatalog) -> None:
    catalog.put(record(), expected=0)
    earlier(catalog.path, 1)
    assert catalog.epochs(["tenant:a"]) == [0]
    assert catalog.bump("tenant:a") == 1
    assert catalog.get("handbook") == record()


def test_a_read_only_catalog_of_an_earlier_release_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        catalog = SqliteCatalog(home / "catalog.sqlite")
        catalog.put(record(), expected=0)
        earlier(catalog.path, 1)
        before = catalog.path.read_bytes()
        os.chmod(folder, 0o755)
        catalog.path.chmod(0o444)
        home.chmod(0o555)
        with powerless():
            assert catalog.get("handbook") == record()
            assert catalog.epochs(["tenant:a"]) == [0]
        assert catalog.path.read_bytes() == before
        home.chmod(0o755)


def test_one_of_many_processes_wins_each_version(tmp_path: Path) -> None:
    race(SqliteCatalog, tmp_path / "c.sqlite")


class FullFile(SqliteFile):
    """On a disk that has no page left."""

    def _open(self, options: str = "") -> sqlite3.Connection:
        db = super()._open(options)
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        return db


class Full(SqliteCatalog):
    @property
    def _file(self) -> SqliteFile:
        return FullFile(self.path, self.busy_timeout_s)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite")
    catalog.put(record(), expected=0)
    text = "".join(random.Random(1).choices("abcdefghij", k=200_000))
    large = replace(record(version=2), shards=(replace(record().shards[0], system=text),))
    with pytest.raises(HomeError, match=r"disk is full.*preread gc"):
        Full(catalog.path).put(large, expected=1)
    assert catalog.get("handbook") == record()
