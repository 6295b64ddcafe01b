"""List, show, invalidate, remove, and what may be freed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from preread.contexts.build import BuildRequest, build_context
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.manage import (
    collect_garbage,
    invalidate_context,
    joining,
    list_contexts,
    remove_context,
    show_context,
)
from preread.errors import UnknownName
from preread.testing.backend import FakeBackend
from preread.testing.conformance_catalog import record
from tests.contexts.made import NOW, config, folder


@pytest.fixture
def catalog(tmp_path: Path) -> SqliteCatalog:
    return SqliteCatalog(tmp_path / "home" / "catalog.sqlite")


async def test_the_list_tells_the_state(catalog: SqliteCatalog, tmp_path: Path) -> None:
    docs = folder(tmp_path, a__md="a", b__md="b")
    settings = config(tmp_path / "home")
    for name, ttl_s in (("fresh", None), ("late", 60.0), ("bad", None)):
        request = BuildRequest(name, (str(docs),), ttl_s=ttl_s)
        await build_context(FakeBackend(), catalog, request, settings, now=lambda: NOW)
    catalog.invalidate("bad", "recall")
    later = NOW + 61
    cheap = {item.summary.name: item.state.label for item in list_contexts(catalog, later)}
    assert cheap == {"bad": "invalidated", "fresh": "fresh", "late": "expired"}
    (docs / "a.md").write_text("changed")
    looked = list_contexts(catalog, later, settings.context)
    assert [item.state.label for item in looked] == ["invalidated", "stale", "expired"]
    assert looked[1].state.reason == "1 of 2 files changed"


def test_show_tells_versions_and_sessions(catalog: SqliteCatalog, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        catalog.put(record(version=version), expected=version - 1)
    catalog.remove("handbook", below=2)
    catalog.append_turn("handbook", "s", ("q", "a"), at=0)
    shown = show_context(catalog, "handbook", NOW, config(tmp_path).context)
    assert shown.record == record(version=3) and shown.versions == (3, 2)
    assert shown.sessions == ("s",) and shown.state.label == "expired"


def test_invalidating_and_removing(catalog: SqliteCatalog) -> None:
    catalog.put(record(), expected=0)
    invalidate_context(catalog, "handbook", "new prices")
    assert catalog.summaries()[0].invalidated == "new prices"
    assert remove_context(catalog, "handbook") == 1
    assert catalog.summaries() == []


def test_an_invalidation_reaches_what_joins_it(catalog: SqliteCatalog) -> None:
    for name in ("handbook", "prices", "prices+handbook", "handbook-old+prices"):
        catalog.put(record(name), expected=0)
    assert joining(catalog, "handbook") == ("prices+handbook",)
    assert invalidate_context(catalog, "handbook", "recall") == ("handbook", "prices+handbook")
    invalid = [summary.name for summary in catalog.summaries() if summary.invalidated]
    assert invalid == ["handbook", "prices+handbook"]


def test_unknown_names_are_errors(catalog: SqliteCatalog, tmp_path: Path) -> None:
    catalog.put(record(), expected=0)
    limits = config(tmp_path).context
    for use in (
        lambda: show_context(catalog, "handbok", NOW, limits),
        lambda: invalidate_context(catalog, "handbok", "x"),
        lambda: remove_context(catalog, "handbok"),
    ):
        with pytest.raises(UnknownName, match="close: handbook"):
            use()


def test_garbage_is_what_is_old_or_expired(catalog: SqliteCatalog) -> None:
    for version in range(1, 6):
        kept = replace(record(version=version), expires_at=None)
        catalog.put(kept, expected=version - 1)
    freed = collect_garbage(catalog, 2, NOW)
    assert (freed.expired, freed.versions) == ((), 3)
    assert [v for v in range(1, 6) if catalog.get("handbook", v)] == [4, 5]
    assert freed.live_chunks == catalog.live_chunks(NOW)
    assert "0400" * 16 in freed.live_chunks and "0300" * 16 not in freed.live_chunks
    assert collect_garbage(catalog, 2, NOW).versions == 0


def test_an_expired_context_loses_its_kv_and_no_conversation(catalog: SqliteCatalog) -> None:
    for version in (1, 2):
        late = replace(record(version=version), expires_at=NOW)
        catalog.put(late, expected=version - 1)
    catalog.append_turn("handbook", "s", ("q", "a"), at=0)
    freed = collect_garbage(catalog, 3, NOW)
    assert (freed.expired, freed.versions, freed.live_chunks) == (("handbook",), 1, frozenset())
    assert catalog.get("handbook") == late and catalog.get("handbook", 1) is None
    assert catalog.session("handbook", "s") == (("q", "a"),)


def test_an_invalidated_context_loses_its_kv_and_stays(catalog: SqliteCatalog) -> None:
    catalog.put(replace(record(), expires_at=None), expected=0)
    catalog.invalidate("handbook", "recall")
    assert collect_garbage(catalog, 3, NOW).live_chunks == frozenset()
    assert catalog.get("handbook")


def test_the_newest_version_always_stays(catalog: SqliteCatalog) -> None:
    catalog.put(replace(record(), expires_at=None), expected=0)
    assert collect_garbage(catalog, 0, NOW).versions == 0
    assert catalog.get("handbook")


def test_listing_needs_no_heavy_import() -> None:
    code = (
        "import sys, preread.contexts.manage, preread.contexts.catalog.sqlite\n"
        "heavy = {'numpy', 'torch', 'pydantic', 'asyncio', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
