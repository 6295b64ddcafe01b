"""Tenants of one catalog: each sees names of its own and no other's; gc sees everybody's chunks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from preread.config import Config, StoreSection
from preread.contexts.catalog.base import Catalog
from preread.contexts.catalog.object import ObjectCatalog
from preread.contexts.catalog.owned import OwnedCatalog, owner_prefix
from preread.contexts.catalog.scopes import model_scope, owner_scope, scopes_of
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.errors import CatalogConflict, UsageError
from preread.home import open_catalog
from preread.store.tiers.bucket import Bucket
from preread.testing.conformance_catalog import CatalogConformance, record

ALICE, BOB = (owner_prefix(StoreSection(tenant=name)) for name in ("alice", "bob"))


class TestOwnedBySomebody(CatalogConformance):
    def open(self, place: Path) -> Catalog:
        return OwnedCatalog(SqliteCatalog(place / "home" / "catalog.sqlite"), ALICE)


class TestOwnedByTheDefaultTenant(CatalogConformance):
    def open(self, place: Path) -> Catalog:
        return OwnedCatalog(SqliteCatalog(place / "home" / "catalog.sqlite"), "")


@pytest.fixture(params=["sqlite", "object"])
def everybodys(request: pytest.FixtureRequest, tmp_path: Path) -> Catalog:
    if request.param == "sqlite":
        return SqliteCatalog(tmp_path / "catalog.sqlite")
    return ObjectCatalog(Bucket(MemoryStore(), "memory"))


@pytest.mark.parametrize("mine", [ALICE, ""])
def test_nothing_of_another_tenant_is_seen(everybodys: Catalog, mine: str) -> None:
    me, bob = OwnedCatalog(everybodys, mine), OwnedCatalog(everybodys, BOB)
    me.put(record("secret", text="Mine."), expected=0)
    me.append_turn("secret", "s", ("who?", "me"), at=0)
    assert bob.get("secret") is None and bob.get(f"{mine}secret") is None
    assert not bob.summaries() and not bob.sessions("secret")
    assert bob.session("secret", "s") == () and not bob.invalidate("secret", "no")
    assert bob.remove("secret") == 0 and [s.newest for s in bob.standing([("secret", 1)])] == [0]
    bob.touch("secret", 9e9)
    assert me.summaries()[0].last_used < 9e9
    for name in (f"{BOB}secret", f"{ALICE}secret"):
        assert me.get(name) is None and me.remove(name) == 0 and not me.sessions(name)
        assert not me.invalidate(name, "no") and me.session(name, "s") == ()
        with pytest.raises(UsageError):
            me.put(record(name), expected=0)
        with pytest.raises(CatalogConflict):
            me.append_turn(name, "s", ("a", "b"), at=0)
    kept = me.get("secret")
    assert kept is not None and kept.name == "secret" and not kept.invalidated


def test_equal_names_are_two_contexts(everybodys: Catalog) -> None:
    catalogs = [OwnedCatalog(everybodys, prefix) for prefix in (ALICE, BOB, "")]
    for i, one in enumerate(catalogs):
        one.put(record("rules", text=f"Of {i}."), expected=0)
    catalogs[0].put(replace(record("rules", text="Newer."), version=2), expected=1)
    assert [one.summaries()[0].version for one in catalogs] == [2, 1, 1]
    assert all([s.name for s in one.summaries()] == ["rules"] for one in catalogs)
    with pytest.raises(CatalogConflict, match="Context 'rules'"):
        catalogs[1].put(record("rules"), expected=0)
    chunks = {key for one in catalogs for key in one.get("rules").chunk_keys}  # type: ignore[union-attr]
    assert all(one.live_chunks() == chunks for one in catalogs), "gc leaves everybody's"


def test_a_tenant_erases_its_own_and_nobody_elses(everybodys: Catalog) -> None:
    model = "f0" * 32
    alice = OwnedCatalog(everybodys, ALICE, "tenant:alice")
    assert alice.bump("tenant:alice") == alice.bump(model_scope(model, "tenant:alice")) == 1
    others = [
        "tenant:bob",
        "shared:alice",
        model_scope(model),
        model_scope(model, "tenant:bob"),
        model_scope(model, "shared:alice"),
        model_scope(model, "tenant:x@tenant:alice"),  # somebody's name ends like hers
    ]
    for scope in others:
        with pytest.raises(UsageError, match="not of tenant:alice alone"):
            alice.bump(scope)
    assert everybodys.epochs(others) == [0] * len(others)
    assert [OwnedCatalog(everybodys, "").bump(scope) for scope in others] == [1] * len(others)


def test_no_two_scopes_are_called_the_same() -> None:
    names = ("a", "b", f"model:{'f0' * 32}", f"a@tenant:b model:{'f0' * 32}", "@", "")
    kept = [StoreSection(tenant=n) for n in names] + [
        StoreSection(shared=n, tenant="t") for n in names if n
    ]
    owners = {owner_scope(one) for one in kept}
    assert len(owners) == len(kept)
    scopes = [scope for one in kept for scope in scopes_of(one, "f0" * 32)[:2]]
    assert len({*scopes, model_scope("f0" * 32)}) == 2 * len(kept) + 1


def test_who_owns_what(tmp_path: Path) -> None:
    assert owner_prefix(StoreSection()) == "" and ALICE != BOB
    assert owner_prefix(StoreSection(shared="alice")) not in (ALICE, "")
    shared = [owner_prefix(StoreSection(tenant=name, shared="team")) for name in ("alice", "bob")]
    assert shared[0] == shared[1]
    stores = (StoreSection(tenant="alice"), StoreSection(tenant="bob"), StoreSection())
    alice, bob, anybody = (open_catalog(Config(home=tmp_path, store=store)) for store in stores)
    alice.put(record("secret"), expected=0)
    assert alice.get("secret") and bob.get("secret") is None and anybody.get("secret") is None
    with pytest.raises(UsageError, match="all-tenants"):
        alice.bump(model_scope("f0" * 32))
    assert anybody.bump(model_scope("f0" * 32)) == 1
