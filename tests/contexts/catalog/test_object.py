"""The catalog in an object store, on S3 over HTTP and obstore's memory: the common suite, and what
a store far away can do wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from obstore.store import MemoryStore

from preread.contexts.catalog.base import Catalog, Standing
from preread.contexts.catalog.object import ObjectCatalog
from preread.contexts.catalog.opening import open_catalog_at
from preread.errors import CatalogConflict, ConfigError, HomeError
from preread.store.tiers.bucket import Bucket, Changed
from preread.testing.conformance_catalog import CatalogConformance, record
from tests.contexts.catalog.racing import race
from tests.servers import bad_server, s3_server


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server("bucket") as endpoint:
        yield endpoint


@pytest.fixture
def place(endpoint: str) -> str:
    """The URL of a catalog of its own."""
    return f"s3://id:secret@bucket/{uuid4().hex}?endpoint={endpoint}"


def catalog_at(place: str) -> Catalog:
    return open_catalog_at(place, Path("nowhere"))


class TestObjectCatalogOnS3(CatalogConformance):
    @pytest.fixture(autouse=True)
    def use(self, place: str) -> None:
        self.place = place

    def open(self, place: Path) -> Catalog:
        return catalog_at(self.place)


class TestObjectCatalogInMemory(CatalogConformance):
    @pytest.fixture(autouse=True)
    def use(self) -> None:
        self.bucket = Bucket(MemoryStore(), "memory")

    def open(self, place: Path) -> Catalog:
        return ObjectCatalog(self.bucket)


def test_one_of_many_processes_wins_each_version(place: str) -> None:
    race(catalog_at, place)


class Interrupted(Bucket):
    """Somebody else does something just before the next conditional put."""

    def __init__(self, store: MemoryStore, others: list[Callable[[], object]]) -> None:
        super().__init__(store, "memory")
        object.__setattr__(self, "others", others)

    def swap(self, path: str, data: bytes, tag: str | None) -> None:
        others: list[Callable[[], object]] = self.others  # type: ignore[attr-defined]
        if others:
            others.pop(0)()
        super().swap(path, data, tag)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def other(store: MemoryStore) -> ObjectCatalog:
    return ObjectCatalog(Bucket(store, "memory"))


def test_a_publication_that_comes_too_late_leaves_nothing(
    store: MemoryStore, other: ObjectCatalog
) -> None:
    late = ObjectCatalog(Interrupted(store, [lambda: other.put(record(), expected=0)]))
    with pytest.raises(CatalogConflict):
        late.put(record(text="late"), expected=0)
    assert other.get("handbook") == record()
    assert len(list(Bucket(store, "memory").list("records"))) == 1


def test_a_publication_whose_reply_was_lost_keeps_its_record(
    store: MemoryStore, other: ObjectCatalog
) -> None:
    """The put went through, its reply did not, and others changed the name before we looked."""

    lost: list[str] = []

    class Lossy(Bucket):
        def swap(self, path: str, data: bytes, tag: str | None) -> None:
            super().swap(path, data, tag)
            if not lost:
                lost.append(path)
                other.invalidate("handbook", "recall")
                raise Changed

    ObjectCatalog(Lossy(store, "memory")).put(record(), expected=0)
    assert other.standing([("handbook", 1)]) == [Standing(1, "recall")]
    assert other.get("handbook") == replace(record(), invalidated="recall")


def test_changes_that_do_not_meet_both_happen(store: MemoryStore, other: ObjectCatalog) -> None:
    other.put(record(), expected=0)
    others = [lambda: other.invalidate("handbook", "recall"), lambda: other.bump("tenant:a")]
    one = ObjectCatalog(Interrupted(store, others))
    one.put(record(version=2), expected=1)
    assert other.standing([("handbook", 1), ("handbook", 2)]) == [
        Standing(2, "recall"),
        Standing(2),
    ]
    assert one.bump("tenant:a") == 2
    one = ObjectCatalog(Interrupted(store, [lambda: other.remove("handbook", below=2)]))
    assert one.invalidate("handbook", "again") is True
    assert other.get("handbook", 1) is None
    assert other.standing([("handbook", 2)]) == [Standing(2, "again")]
    one = ObjectCatalog(Interrupted(store, [lambda: other.put(record(version=3), expected=2)]))
    assert one.remove("handbook") == 2
    assert other.get("handbook") is None


def test_a_turn_that_comes_too_late_says_so(store: MemoryStore, other: ObjectCatalog) -> None:
    other.put(record(), expected=0)
    others = [lambda: other.append_turn("handbook", "s", ("q", "a"), at=0)]
    one = ObjectCatalog(Interrupted(store, others))
    with pytest.raises(CatalogConflict, match="answered in it"):
        one.append_turn("handbook", "s", ("late", "late"), at=0)
    assert other.session("handbook", "s") == (("q", "a"),)


def test_a_turn_of_an_earlier_life_is_not_seen(store: MemoryStore, other: ObjectCatalog) -> None:
    other.put(record(), expected=0)
    again = [lambda: (other.remove("handbook"), other.put(record(), expected=0))]
    one = ObjectCatalog(Interrupted(store, again))  # type: ignore[arg-type]
    one.append_turn("handbook", "s", ("q", "a"), at=0)
    assert other.session("handbook", "s") == () and other.sessions("handbook") == []


def test_reading_a_name_lists_nothing(store: MemoryStore, other: ObjectCatalog) -> None:
    class Blind(Bucket):
        def list(self, folder: str) -> Iterator[Any]:
            raise AssertionError("a listing on the hot path")

    blind = ObjectCatalog(Blind(store, "memory"))
    blind.put(record(), expected=0)
    blind.append_turn("handbook", "s", ("q", "a"), at=0)
    blind.touch("handbook", 2e9)
    assert blind.get("handbook") == record()
    assert blind.session("handbook", "s") == (("q", "a"),)
    assert blind.standing([("handbook", 1)]) == [Standing(1)]
    assert blind.invalidate("handbook", "x") and blind.epochs(["tenant:a"]) == [0]


def test_removing_leaves_only_the_name(store: MemoryStore, other: ObjectCatalog) -> None:
    other.put(record(), expected=0)
    other.put(record(version=2), expected=1)
    other.append_turn("handbook", "s", ("q", "a"), at=0)
    other.touch("handbook", 2e9)
    other.remove("handbook")
    left = [e.path for e in Bucket(store, "memory").list("")]
    assert left == ["names/handbook"]


CALLS: dict[str, Callable[[Catalog], object]] = {
    "get": lambda c: c.get("handbook"),
    "put": lambda c: c.put(record(), expected=0),
    "invalidate": lambda c: c.invalidate("handbook", "x"),
    "standing": lambda c: c.standing([("handbook", 1), ("other", 1)]),
    "remove": lambda c: c.remove("handbook"),
    "summaries": lambda c: c.summaries(),
    "touch": lambda c: c.touch("handbook", 1.0),
    "live_chunks": lambda c: c.live_chunks(),
    "sessions": lambda c: c.sessions("handbook"),
    "session": lambda c: c.session("handbook", "s"),
    "append_turn": lambda c: c.append_turn("handbook", "s", ("q", "a"), at=0),
    "epochs": lambda c: c.epochs(["tenant:a"]),
    "bump": lambda c: c.bump("tenant:a"),
}
DENIED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 12\r\n\r\nAKIDs3cr3t.."


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("reply", "says"), [(None, "deadline"), (b"", "gone"), (DENIED, "denied.*Allow reading")]
)
def test_a_bad_server_is_said_without_secrets(call: str, reply: bytes | None, says: str) -> None:
    with bad_server(reply) as endpoint:
        catalog = catalog_at(f"s3://AKID:s3cr3t@bucket/c?endpoint={endpoint}&deadline=0.3s")
        with pytest.raises(HomeError, match=f"Catalog: .*s3://bucket/c.*{says}") as caught:
            CALLS[call](catalog)
        assert "s3cr3t" not in str(caught.value) and "AKID" not in str(caught.value)


@pytest.mark.parametrize("folder", ["names", "records", "sessions", "epochs"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\0"])
def test_damage_is_named(
    store: MemoryStore, other: ObjectCatalog, folder: str, damage: bytes
) -> None:
    other.put(record(), expected=0)
    other.append_turn("handbook", "s", ("q", "a"), at=0)
    other.bump("tenant:a")
    bucket = Bucket(store, "memory")
    (path,) = [entry.path for entry in bucket.list(folder)]
    bucket.put(path, [damage])
    with pytest.raises(HomeError, match=r"damaged.*build again"):
        other.get("handbook")
        other.session("handbook", "s")
        other.epochs(["tenant:a"])


def test_a_record_that_is_gone_is_damage(store: MemoryStore, other: ObjectCatalog) -> None:
    other.put(record(), expected=0)
    bucket = Bucket(store, "memory")
    bucket.delete([entry.path for entry in bucket.list("records")])
    with pytest.raises(HomeError, match="damaged"):
        other.get("handbook")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file:///tmp/x", "compare-and-swap"),
        ("ram:5MB", "no place for a catalog"),
        ("disk", "no place for a catalog"),
        ("redis://a,redis://b", "more than one"),
        ("s3://bucket/c?budget=5GB&ttl=1d", "budget, ttl mean nothing"),
        ("gopher://a", "no kind of"),
    ],
)
def test_what_is_no_catalog_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        catalog_at(text)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preread.contexts.catalog.opening.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'preread\[object\]'"):
        catalog_at("s3://bucket/c")
