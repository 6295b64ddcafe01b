"""Several contexts asked as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from preread.contexts.ask import ask
from preread.contexts.build import BuildRequest, build_context
from preread.contexts.names import joined_names
from preread.errors import StateError, UnknownName, UsageError
from tests.contexts.made import Shop


@pytest.fixture
async def bench(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    await shop.build()
    more = tmp_path / "more"
    more.mkdir()
    (more / "prices.md").write_text("price: 12 euros")
    await named(shop, "prices", str(more))
    return shop


async def named(shop: Shop, name: str, *patterns: str, **request):
    asked = BuildRequest(name, patterns, **request)
    return await build_context(shop.backend, shop.catalog, asked, shop.config, now=lambda: shop.now)


async def test_it_answers_from_all_of_them_and_keeps_that(bench: Shop) -> None:
    opened = await bench.open("shop+prices")
    paths = [source.path for source in opened.record.sources]
    assert [path.rpartition("/")[2] for path in paths] == ["hours.md", "people.md", "prices.md"]
    for question, answer in (("price?", "12 euros"), ("owner?", "Ann Lee")):
        assert (await ask(bench.backend, opened, question)).text == answer
    assert "joined" in opened.notes[0] and opened.record.name == "shop+prices"
    again = await bench.open("shop+prices")
    assert again.record == opened.record and again.notes == () and len(bench.built) == 1


async def test_it_reuses_what_the_first_one_has_read(bench: Shop) -> None:
    await bench.open("shop+prices")
    (outcome,) = bench.built
    single = bench.catalog.get("shop")
    assert single is not None and 0 < outcome.reused_tokens <= single.tokens
    assert outcome.computed_tokens < outcome.tokens - 0.5 * single.tokens


async def test_a_change_of_one_is_a_change_of_all(bench: Shop) -> None:
    await bench.open("shop+prices")
    (bench.docs / "people.md").write_text("owner: Bo")
    opened = await bench.open("shop+prices")
    assert opened.record.version == 2 and "1 of 2 files changed" in opened.notes[0]
    assert (await ask(bench.backend, opened, "owner?")).text == "Bo"
    bench.catalog.invalidate("prices", "recall")
    assert "recall" in (await bench.open("shop+prices")).notes[0]


async def test_it_expires_with_the_first_of_them(bench: Shop) -> None:
    """Also where it is held open, and whoever lists or exports it: a hit of the whole never makes a
    part last longer."""
    first = (await bench.open("shop+prices")).record
    assert first.expires_at is None
    await named(bench, "prices", str(bench.docs.parent / "more"), ttl_s=60)
    held = await bench.open("shop+prices")
    assert held.record.expires_at == bench.now + 60 and held.record.version == 2
    assert bench.built[-1].computed_tokens == 0
    bench.now += 30
    assert (await bench.open("shop+prices")).record == held.record, "not from this use on"
    held.check()
    bench.now += 31
    with pytest.raises(StateError, match="expired"):
        held.check()
    again = await bench.open("shop+prices")  # the part is renewed, and so is the whole
    assert again.record.version == 3 and again.record.expires_at == bench.now + 60
    again.check()


async def test_documents_of_both_are_read_once(bench: Shop) -> None:
    await named(bench, "copy", str(bench.docs))
    assert len((await bench.open("shop+copy")).record.sources) == 2


async def test_other_instructions_are_said(bench: Shop) -> None:
    await named(bench, "terse", str(bench.docs), instructions="Be terse.")
    opened = await bench.open("terse+prices")
    assert opened.record.instructions == "Be terse."
    assert "answering by the instructions of 'terse'" in opened.notes


async def test_each_name_must_be_known(bench: Shop) -> None:
    with pytest.raises(UnknownName, match=r"'price'; close: prices"):
        await bench.open("shop+price")
    with pytest.raises(UsageError, match="cannot name a context"):
        await named(bench, "a+b", str(bench.docs))


async def test_a_file_goes_before_names_that_are_joined(bench: Shop, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shop+prices").mkdir()
    Path("shop+prices/a.md").write_text("colour: red")
    opened = await bench.open("shop+prices")
    assert (await ask(bench.backend, opened, "colour?")).text == "red"


def test_what_joins_names() -> None:
    assert joined_names("a+b-1+c.d") == ("a", "b-1", "c.d")
    assert joined_names("a") == joined_names("a+") == joined_names("a+/b") == ()
