"""The suite that every catalog passes. Subclass `CatalogConformance` in a test file and say how to
open one; pytest does the rest."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from preread.contexts.catalog.base import (
    Catalog,
    ContextRecord,
    EmbeddingRecord,
    Part,
    ShardRecord,
    SourceRecord,
    Standing,
)
from preread.errors import CatalogConflict, UsageError


def record(name: str = "handbook", version: int = 1, text: str = "Open at 9.") -> ContextRecord:
    """A record with every field in use."""
    sources = (
        SourceRecord("docs/a.md", "/srv/docs/a.md", "aa" * 32, f"{text}\nZürich – 東京 🙂", (3, 9)),
        SourceRecord("stdin", "", "bb" * 32, "typed"),
    )
    shards = tuple(
        ShardRecord(
            system=f"read [{i}] {text}",
            sources=(i,),
            tokens=100 + i,
            kv_bytes=6400,
            chunk_keys=(f"{version:02x}{i:02x}" * 16, "cc" * 32),
            parts=(Part(i, 0, len(sources[i].text)),),
        )
        for i in range(2)
    )
    return ContextRecord(
        name=name,
        version=version,
        model="reader",
        fingerprint="f0" * 32,
        instructions="Answer briefly.",
        sources=sources,
        shards=shards,
        created_at=1_700_000_000.25,
        expires_at=1_700_604_800.5,
        patterns=("/srv/docs", "-"),
        dtype="float32",
        embedding=EmbeddingRecord("fake", 1, (Part(0, 0, 4),), b"\0\0\x80?"),
        prefill_tok_s=1234.5,
    )


class CatalogConformance:
    """open: called with the same place twice, it opens the same catalog."""

    def open(self, place: Path) -> Catalog:
        """A catalog at `place`, an own folder per test."""
        raise NotImplementedError

    @pytest.fixture
    def catalog(self, tmp_path: Path) -> Catalog:
        return self.open(tmp_path)

    def test_is_a_catalog(self, catalog: Catalog) -> None:
        assert isinstance(catalog, Catalog)

    def test_is_empty_at_first(self, catalog: Catalog) -> None:
        assert catalog.get("handbook") is None
        assert catalog.summaries() == []
        assert catalog.live_chunks() == frozenset()
        assert list(catalog.sessions("handbook")) == []
        assert catalog.session("handbook", "s") == ()

    def test_gives_back_what_was_put(self, catalog: Catalog, tmp_path: Path) -> None:
        catalog.put(record(), expected=0)
        assert catalog.get("handbook") == self.open(tmp_path).get("handbook") == record()

    def test_keeps_optional_fields_empty(self, catalog: Catalog) -> None:
        bare = replace(record(), expires_at=None, embedding=None, prefill_tok_s=0.0, shards=())
        catalog.put(bare, expected=0)
        assert catalog.get("handbook") == bare

    def test_the_newest_version_is_the_default(self, catalog: Catalog) -> None:
        first, second = record(), record(version=2, text="Doors open at 10.")
        catalog.put(first, expected=0)
        catalog.put(second, expected=1)
        assert catalog.get("handbook") == second
        assert catalog.get("handbook", 1) == first
        assert catalog.get("handbook", 3) is None

    @pytest.mark.parametrize("expected", [0, 2, 7])
    def test_who_comes_second_is_told(self, catalog: Catalog, expected: int) -> None:
        catalog.put(record(), expected=0)
        with pytest.raises(CatalogConflict) as caught:
            catalog.put(record(version=expected + 1, text="late"), expected=expected)
        assert caught.value.retryable
        assert catalog.get("handbook") == record()

    def test_one_of_many_threads_wins_each_version(self, catalog: Catalog) -> None:
        won: list[int] = []
        barrier = threading.Barrier(6)

        def build(writer: int) -> None:
            for version in range(1, 4):
                barrier.wait()
                try:
                    text = f"by {writer}"
                    catalog.put(record(version=version, text=text), expected=version - 1)
                    won.append(version)
                except CatalogConflict:
                    pass

        threads = [threading.Thread(target=build, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == [1, 2, 3]

    def test_invalidation_marks_the_newest_version(self, catalog: Catalog) -> None:
        catalog.put(record(), expected=0)
        catalog.put(record(version=2), expected=1)
        assert catalog.invalidate("handbook", "new prices") is True
        newest, older = catalog.get("handbook"), catalog.get("handbook", 1)
        assert newest and newest.invalidated == "new prices"
        assert older and older.invalidated == ""
        assert catalog.summaries()[0].invalidated == "new prices"
        assert catalog.standing([("handbook", n) for n in (2, 1, 3)]) == [
            Standing(2, "new prices"), Standing(2), Standing(2)
        ]  # fmt: skip
        assert catalog.invalidate("nobody", "x") is False

    def test_an_invalidation_without_a_reason_holds(self, catalog: Catalog) -> None:
        catalog.put(record(), expected=0)
        catalog.invalidate("handbook", "")
        found = catalog.get("handbook")
        assert found and found.invalidated

    def test_the_next_version_is_valid_again(self, catalog: Catalog) -> None:
        catalog.put(record(), expected=0)
        catalog.invalidate("handbook", "old")
        catalog.put(record(version=2), expected=1)
        assert catalog.summaries()[0].invalidated == ""

    def test_summaries_say_the_newest_of_every_name(self, catalog: Catalog) -> None:
        catalog.put(record("b"), expected=0)
        catalog.put(record("a"), expected=0)
        catalog.put(record("a", 2), expected=1)
        a, b = catalog.summaries()
        assert (a.name, a.version, b.name, b.version) == ("a", 2, "b", 1)
        assert (a.tokens, a.shards, a.sources, a.kv_bytes) == (201, 2, 2, 12_800)
        assert (a.model, a.fingerprint) == ("reader", "f0" * 32)
        assert (a.created_at, a.expires_at) == (1_700_000_000.25, 1_700_604_800.5)
        assert a.last_used == a.created_at

    def test_a_use_is_remembered_and_extends_nothing(self, catalog: Catalog) -> None:
        catalog.put(record(), expected=0)
        catalog.touch("handbook", 1_700_000_100.0)
        catalog.touch("handbook", 1_700_000_050.0)
        (summary,) = catalog.summaries()
        assert summary.last_used == 1_700_000_100.0
        assert summary.expires_at == record().expires_at
        catalog.touch("nobody", 1.0)
        assert len(catalog.summaries()) == 1

    def test_removing_forgets_everything(self, catalog: Catalog) -> None:
        catalog.put(record(), expected=0)
        catalog.put(record(version=2), expected=1)
        catalog.put(record("other"), expected=0)
        catalog.append_turn("handbook", "s", ("q", "a"), at=0)
        assert catalog.remove("handbook") == 2
        assert catalog.remove("handbook") == 0
        assert catalog.get("handbook") is None and catalog.session("handbook", "s") == ()
        assert catalog.get("other") == record("other")
        catalog.put(record(), expected=0)
        assert catalog.get("handbook") == record()

    def test_removing_old_versions_keeps_the_rest(self, catalog: Catalog) -> None:
        for version in (1, 2, 3):
            catalog.put(record(version=version, text=f"v{version}"), expected=version - 1)
        catalog.append_turn("handbook", "s", ("q", "a"), at=0)
        assert catalog.remove("handbook", below=3) == 2
        assert catalog.get("handbook", 2) is None
        assert catalog.get("handbook") == record(version=3, text="v3")
        assert catalog.session("handbook", "s") == (("q", "a"),)

    def test_live_chunks_are_those_of_kept_versions(self, catalog: Catalog) -> None:
        catalog.put(record(), expected=0)
        catalog.put(record(version=2), expected=1)
        assert catalog.live_chunks() == {
            "0100" * 16, "0101" * 16, "0200" * 16, "0201" * 16, "cc" * 32
        }  # fmt: skip
        catalog.remove("handbook", below=2)
        assert catalog.live_chunks() == {"0200" * 16, "0201" * 16, "cc" * 32}

    def test_chunks_of_what_may_not_answer_are_not_live(self, catalog: Catalog) -> None:
        catalog.put(record(), expected=0)
        catalog.put(replace(record("other", 2), version=1, expires_at=None), expected=0)
        other = {"0200" * 16, "0201" * 16, "cc" * 32}
        expires_at = record().expires_at
        assert expires_at is not None
        assert catalog.live_chunks(expires_at - 1) == other | {"0100" * 16, "0101" * 16}
        assert catalog.live_chunks(expires_at) == other
        catalog.invalidate("other", "recall")
        assert catalog.live_chunks(expires_at) == frozenset()

    def test_sessions_grow_turn_by_turn(self, catalog: Catalog, tmp_path: Path) -> None:
        catalog.put(record(), expected=0)
        catalog.append_turn("handbook", "b", ("q1", "a1"), at=0)
        catalog.append_turn("handbook", "b", ("q2 🙂", "a2\n"), at=1)
        catalog.append_turn("handbook", "a", ("other", ""), at=0)
        again = self.open(tmp_path)
        assert again.session("handbook", "b") == (("q1", "a1"), ("q2 🙂", "a2\n"))
        assert list(again.sessions("handbook")) == ["a", "b"]
        assert list(again.sessions("else")) == []

    @pytest.mark.parametrize("at", [0, 2])
    def test_a_session_that_has_grown_says_so(self, catalog: Catalog, at: int) -> None:
        catalog.put(record(), expected=0)
        catalog.append_turn("handbook", "s", ("q", "a"), at=0)
        with pytest.raises(CatalogConflict):
            catalog.append_turn("handbook", "s", ("late", "late"), at=at)
        assert catalog.session("handbook", "s") == (("q", "a"),)

    def test_a_removed_context_gets_no_turn(self, catalog: Catalog) -> None:
        catalog.put(record(), expected=0)
        catalog.remove("handbook")
        with pytest.raises(CatalogConflict, match="removed"):
            catalog.append_turn("handbook", "s", ("q", "a"), at=0)
        catalog.put(record(), expected=0)
        assert catalog.session("handbook", "s") == ()

    def test_what_is_no_unicode_is_no_damage(self, catalog: Catalog) -> None:
        text = "caf\udce9"
        catalog.put(record(), expected=0)
        with pytest.raises(UsageError, match="not valid Unicode"):
            catalog.get(text)
        with pytest.raises(UsageError, match="not valid Unicode"):
            catalog.invalidate("handbook", text)
        with pytest.raises(UsageError, match="not valid Unicode"):
            catalog.append_turn("handbook", "s", (text, "a"), at=0)
        assert catalog.get("handbook") == record()

    def test_where_versions_stand(self, catalog: Catalog, tmp_path: Path) -> None:
        held = [("other", 1), ("nobody", 1), ("handbook", 1)]
        assert catalog.standing(held) == [Standing(0)] * 3
        assert catalog.standing([]) == []
        catalog.put(record(), expected=0)
        catalog.invalidate("handbook", "recall")
        catalog.put(record(version=2), expected=1)
        catalog.put(record("other"), expected=0)
        catalog.remove("other")
        want = [Standing(0), Standing(0), Standing(2, "recall")]
        assert catalog.standing(held) == self.open(tmp_path).standing(held) == want

    def test_epochs_grow_by_scope(self, catalog: Catalog, tmp_path: Path) -> None:
        assert catalog.epochs(["tenant:a"]) == [0] and catalog.epochs([]) == []
        assert [catalog.bump("tenant:a") for _ in range(3)] == [1, 2, 3]
        assert catalog.bump("model:" + "f0" * 32) == 1
        again = self.open(tmp_path)
        scopes = ("tenant:a", "tenant:b", "model:" + "f0" * 32, "tenant:a")
        assert again.epochs(scopes) == [3, 0, 1, 3]
        assert catalog.summaries() == []

    def test_no_bump_is_lost_between_threads(self, catalog: Catalog) -> None:
        seen: list[int] = []
        threads = [
            threading.Thread(target=lambda: seen.extend(catalog.bump("tenant:a") for _ in range(4)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen) == list(range(1, 17))

    def test_waiting_for_a_hint_ends(self, catalog: Catalog) -> None:
        """Hints come or not; what must hold is that a wait ends: in time, and when closed."""
        hints = catalog.listen()
        hints.wait(0.01)
        waiter = threading.Thread(target=hints.wait, args=(600.0,))
        waiter.start()
        hints.close()
        waiter.join(30)
        assert not waiter.is_alive()
        hints.wait(600.0)
        hints.close()
