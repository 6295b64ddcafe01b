"""The door: names and paths become contexts that can be asked, and the user is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from preread.contexts.ask import ask, choose, stream
from preread.contexts.build import BuildRequest, build_context
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.layout import DEFAULT_INSTRUCTIONS
from preread.contexts.names import derived_name
from preread.contexts.session import Session
from preread.errors import HomeError, SourceError, StateError, UnknownName
from preread.testing.backend import FakeBackend
from tests.contexts.made import NOW, Shop


@pytest.fixture
def bench(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


async def test_a_fresh_context_opens_as_it_is(bench: Shop) -> None:
    record = (await bench.build()).record
    calls = len(bench.backend.calls)
    opened = await bench.open()
    assert opened.record == record and opened.notes == () and bench.built == []
    assert len(bench.backend.calls) == calls
    bench.now += 5
    await bench.open()
    assert bench.catalog.summaries()[0].last_used == NOW + 5


async def test_changed_sources_are_rebuilt_first(bench: Shop) -> None:
    await bench.build(ttl_s=600.0, instructions="Be brief.")
    (bench.docs / "hours.md").write_text("opening time: 8")
    bench.now += 10
    opened = await bench.open()
    record = opened.record
    assert record.version == 2 and record.instructions == "Be brief."
    assert record.expires_at == bench.now + 600
    assert "rebuilt: 1 of 2 files changed" in opened.notes[0] and "reused" in opened.notes[0]
    assert (await ask(bench.backend, opened, "opening time?")).text == "8"
    assert [o.record.version for o in bench.built] == [2]


async def test_a_stale_context_can_be_asked_as_it_is(bench: Shop) -> None:
    await bench.build()
    (bench.docs / "hours.md").write_text("opening time: 8")
    opened = await bench.open(refresh=False)
    assert opened.record.version == 1 and "answering from version 1" in opened.notes[0]


@pytest.mark.parametrize(
    "scope", ["tenant:default", "model:" + "fa" * 32 + "@tenant:default", "model:" + "fa" * 32]
)
async def test_an_erased_context_is_kept_under_new_keys(bench: Shop, scope: str) -> None:
    """Else `gc` would keep what is void, and free what is not."""
    await bench.build()
    bench.catalog.bump("tenant:somebody else")
    bench.catalog.bump("model:" + "fa" * 32 + "@tenant:somebody else")
    assert (await bench.open()).record.version == 1
    bench.catalog.bump(scope)
    opened = await bench.open()
    assert (opened.record.version, opened.record.epochs) == (2, 1)
    assert opened.notes == ("rebuilt: its KV was erased",)
    assert (await bench.open()).record == opened.record


@pytest.mark.parametrize("why", ["expired", "invalidated", "model"])
async def test_whatever_is_not_valid_is_rebuilt(bench: Shop, why: str) -> None:
    await bench.build(ttl_s=60.0)
    if why == "expired":
        bench.now += 60
    elif why == "invalidated":
        bench.catalog.invalidate("shop", "recall of the salt")
    else:
        bench.backend = FakeBackend(fingerprint="bb" * 32)
    opened = await bench.open(refresh=False)
    said = {"expired": "expired", "invalidated": "recall of the salt", "model": "another model"}
    assert opened.record.version == 2 and said[why] in opened.notes[0]
    assert (await bench.open()).record.version == 2


async def test_sources_that_are_gone_leave_the_kept_text(bench: Shop) -> None:
    await bench.build()
    shutil.rmtree(bench.docs)
    opened = await bench.open()
    assert opened.record.version == 1
    assert "answering from the kept text" in opened.notes[0] and "no such file" in opened.notes[0]
    assert (await ask(bench.backend, opened, "owner?")).text == "Ann Lee"
    bench.backend = FakeBackend(fingerprint="bb" * 32)
    moved = await bench.open()
    assert moved.record.version == 2 and moved.record.sources == opened.record.sources


@pytest.mark.parametrize("why", ["expired", "invalidated"])
async def test_what_must_be_rebuilt_and_cannot_is_an_error(bench: Shop, why: str) -> None:
    await bench.build(ttl_s=60.0)
    shutil.rmtree(bench.docs)
    bench.now += 60 * (why == "expired")
    if why == "invalidated":
        bench.catalog.invalidate("shop", "recall")
    with pytest.raises(SourceError, match=r"cannot be rebuilt.*preread build shop PATH"):
        await bench.open()


async def test_an_opened_context_obeys_its_time_to_live(bench: Shop) -> None:
    await bench.build(ttl_s=60.0)
    opened = await bench.open()
    assert (await ask(bench.backend, opened, "opening time?")).text == "9"
    bench.now += 60
    session = Session(bench.backend, bench.catalog, opened, "s")
    for use in (
        lambda: ask(bench.backend, opened, "opening time?"),
        lambda: choose(bench.backend, opened, ["opening time?"], ["9", "8"]),
        lambda: anext(stream(bench.backend, opened, "opening time?")),
        lambda: session.ask("opening time?"),
    ):
        with pytest.raises(StateError, match=r"'shop'.*expired 20.*engine.open\('shop'\)"):
            await use()
    assert session.turns() == ()
    assert (await ask(bench.backend, await bench.open(), "opening time?")).text == "9"


async def test_an_opened_context_that_was_invalidated_stops_answering(bench: Shop) -> None:
    await bench.build()
    opened = await bench.open()
    bench.catalog.invalidate("shop", "recall of the salt")
    renewed = await bench.open()
    with pytest.raises(StateError, match=r"version 1.*recall of the salt"):
        await ask(bench.backend, opened, "opening time?")
    assert (await ask(bench.backend, renewed, "opening time?")).text == "9"


async def test_a_path_is_built_when_missing_and_found_again(
    bench: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await bench.open(str(bench.docs))
    assert first.record.name == derived_name(str(bench.docs)) and first.record.version == 1
    monkeypatch.chdir(bench.docs.parent)
    again = await bench.open("docs")
    assert again.record == first.record and len(bench.built) == 1
    (bench.docs / "hours.md").write_text("opening time: 8")
    assert (await bench.open("docs")).record.version == 2
    shutil.rmtree(bench.docs)
    kept = await bench.open("docs")
    assert kept.record.version == 2 and "kept text" in kept.notes[0]


async def test_other_instructions_rebuild_and_none_leave_them(bench: Shop) -> None:
    place = str(bench.docs)
    await bench.open(place)
    kept = await bench.open(place, instructions="Be brief.", refresh=False)
    assert kept.record.version == 1 and "instructions changed" in kept.notes[0]
    other = await bench.open(place, instructions="Be brief.")
    assert (other.record.version, other.record.instructions) == (2, "Be brief.")
    assert "rebuilt: the instructions changed" in other.notes[0]
    assert (await bench.open(place)).record == other.record
    assert (await bench.open(place, instructions="Be brief.")).record == other.record
    back = await bench.open(place, instructions=DEFAULT_INSTRUCTIONS)
    assert back.record.instructions == DEFAULT_INSTRUCTIONS


async def test_a_path_is_never_answered_from_other_documents(bench: Shop) -> None:
    name = derived_name(str(bench.docs))
    await build_context(
        bench.backend,
        bench.catalog,
        BuildRequest(name, (str(bench.docs / "people.md"),)),
        bench.config,
    )
    with pytest.raises(SourceError, match="holds other documents"):
        await bench.open(str(bench.docs))
    assert (await bench.open(name)).record.version == 1


async def test_a_glob_is_a_path(bench: Shop) -> None:
    opened = await bench.open(str(bench.docs / "h*.md"))
    assert [s.path for s in opened.record.sources] == ["docs/hours.md"]


async def test_a_name_goes_before_a_path(bench: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.build()
    (bench.docs / "shop").mkdir()
    monkeypatch.chdir(bench.docs)
    assert (await bench.open("shop")).record.name == "shop"


async def test_standard_input_is_named_by_its_content(bench: Shop) -> None:
    one = await bench.open("-", stdin=b"opening time: 7")
    same = await bench.open("-", stdin=b"opening time: 7")
    other = await bench.open("-", stdin=b"opening time: 6")
    assert one.record == same.record
    assert other.record.name != one.record.name and other.record.version == 1


async def test_an_unknown_name_names_what_is_close(bench: Shop) -> None:
    await bench.build()
    with pytest.raises(UnknownName, match="close: shop"):
        await bench.open("shpo")
    with pytest.raises(SourceError, match="no such file or folder"):
        await bench.open("./shpo")


async def test_a_home_that_cannot_be_written_can_be_asked(
    bench: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.build()

    def refuse(self: SqliteCatalog, name: str, when: float) -> None:
        raise HomeError("read-only")

    monkeypatch.setattr(SqliteCatalog, "touch", refuse)
    opened = await bench.open()
    assert "was not recorded: read-only" in opened.notes[0]


async def test_vectors_that_are_not_renewed_are_said(bench: Shop) -> None:
    class Ones:
        name = "ones"

        def __call__(self, texts: object) -> list[list[float]]:
            return [[1.0] for _ in texts]  # type: ignore[attr-defined]

    await bench.build(embedder=Ones())
    (bench.docs / "hours.md").write_text("opening time: 8")
    opened = await bench.open()
    assert opened.record.embedding is None and "'ones' were not renewed" in opened.notes[0]
    assert (await bench.open(embedder=Ones())).record.version == 2


@pytest.mark.parametrize("name", ["docs", "-", "docs/*.md", "docs+docs", "~", "/", ""])
async def test_a_name_is_no_path_where_paths_are_not_wanted(
    bench: Shop, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.docs.parent)
    for target in (name, str(bench.docs)):
        with pytest.raises(UnknownName):
            await bench.open(target, paths=False)
    assert bench.catalog.summaries() == [] and bench.built == []


async def test_names_are_opened_where_paths_are_not_wanted(bench: Shop) -> None:
    await bench.build()
    name = bench.catalog.summaries()[0].name
    assert (await bench.open(name, paths=False)).record.version == 1
    (bench.docs / "hours.md").write_text("opening time: 8")
    assert (await bench.open(name, paths=False)).record.version == 2
