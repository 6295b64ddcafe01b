"""Contexts joined approximately: what is asked, what it stands on, and what every answer says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from preread.blends import Agreed, Approximate, Blend
from preread.config import ContextSection
from preread.contexts.ask import ask, choose
from preread.contexts.blending import blend_of, remember, remembered
from preread.contexts.session import Session
from preread.contexts.warm import warm
from preread.errors import ConfigError, StateError, UnknownName, UsageError
from tests.contexts.made import Shop
from tests.contexts.test_joined import bench, named  # noqa: F401


async def opened(shop: Shop, target: str = "shop+prices", **options):
    return await shop.open(target, approximate=True, **options)


async def test_it_asks_what_the_exact_composition_asks(bench: Shop) -> None:  # noqa: F811
    blended, exact = await opened(bench), await bench.open("shop+prices")
    mine, true = blended.record, exact.record
    assert [s.system for s in mine.shards] == [s.system for s in true.shards]
    assert (mine.sources, mine.instructions) == (true.sources, true.instructions)
    assert mine.tokens == true.tokens and not mine.chunk_keys and mine.version == 0
    prefix = blended.prefix(0)
    assert replace(prefix, blend=None) == exact.prefix(0) != prefix
    parts = [bench.catalog.get(name) for name in ("shop", "prices")]
    assert prefix.blend == Blend(tuple(p.shards[0].system for p in parts if p), 0.15, "first")


async def test_nothing_of_it_is_published_or_read(bench: Shop) -> None:  # noqa: F811
    bench.backend.calls.clear()
    await opened(bench)
    assert {call.kind for call in bench.backend.calls} == {"count"}
    assert bench.catalog.get("shop+prices") is None and bench.built == []


async def test_every_answer_says_so(bench: Shop) -> None:  # noqa: F811
    context = await opened(bench)
    answer = await ask(bench.backend, context, "price?")
    assert answer.text == "12 euros" and answer.approximate == context.approximate
    assert answer.approximate is not None and answer.approximate.agreed is None
    assert answer.notes == (
        "approximate, 15 % computed again (first of each part); agreement not measured: preread "
        "verify --approximate shop+prices",
    )
    assert answer.context is not None and answer.context.version == 0
    (choice,) = await choose(bench.backend, context, ["price?"], ["12 euros", "9"])
    assert choice.approximate == context.approximate and choice.notes == answer.notes
    exact = await ask(bench.backend, await bench.open("shop+prices"), "price?")
    assert exact.approximate is None and exact.notes == ()


async def test_what_was_measured_goes_with_it(bench: Shop) -> None:  # noqa: F811
    context = await opened(bench)
    agreed = Agreed(200, 0.985, 1.25e-3, 12, 11, 10, 8, 7)
    assert context.approximate is not None
    remember(bench.config, context.record, context.approximate.blend, agreed)
    again = await opened(bench)
    assert again.approximate == replace(context.approximate, agreed=agreed)
    assert not again.same(context) and again.same(await opened(bench))
    said = (await ask(bench.backend, again, "price?")).notes[0]
    assert "11 answered the same, greedy token equal at 98.5 % of 200" in said
    assert "right: 7 of 10, exact 8" in said and "not measured" not in said
    bench.config = replace(bench.config, context=ContextSection(blend_share=0.3))
    assert (await opened(bench)).approximate.agreed is None  # of another share
    bench.config = replace(bench.config, context=ContextSection())
    (bench.docs / "people.md").write_text("owner: Bo")
    assert (await opened(bench)).approximate.agreed is None  # of other documents
    blend = context.approximate.blend
    other = replace(context.record, fingerprint="cd" * 32)
    assert remembered(bench.config, other, blend) is None  # of another model
    assert remembered(bench.config, context.record, blend) == agreed


async def test_parts_are_renewed_first(bench: Shop) -> None:  # noqa: F811
    (bench.docs / "people.md").write_text("owner: Bo")
    context = await opened(bench)
    assert "1 of 2 files changed" in context.notes[0]
    assert (await ask(bench.backend, context, "owner?")).text == "Bo"


async def test_what_ends_a_part_ends_it(bench: Shop) -> None:  # noqa: F811
    context = await opened(bench)
    bench.catalog.invalidate("prices", "recall")
    with pytest.raises(StateError, match=r"'prices', version 1.*recall"):
        await ask(bench.backend, context, "price?")
    assert "recall" in (await opened(bench)).notes[0]
    await named(bench, "prices", str(bench.docs.parent / "more"), ttl_s=60.0)
    context = await opened(bench)
    assert context.record.expires_at == bench.now + 60
    bench.now += 61
    with pytest.raises(StateError, match="expired"):
        await ask(bench.backend, context, "price?")


async def test_it_is_warmed_as_a_blend(bench: Shop) -> None:  # noqa: F811
    context = await opened(bench)
    built = await warm(bench.backend, context)
    assert built.chunk_keys == () and built.tokens == context.record.tokens
    kinds = [(call.kind, call.what) for call in bench.backend.calls]
    assert ("build", context.prefix(0)) in kinds


async def test_contexts_of_several_shards(tmp_path: Path) -> None:
    """Each shard of the whole is put together from the shards of the parts."""
    shop = Shop(tmp_path)
    long = "\n\n".join(f"# Part {i}\n\n" + f"item{i} " * 60 for i in range(12))
    (shop.docs / "long.md").write_text(long)
    shop.backend._info = replace(shop.backend._info, limit=1000, effective_limit=1000)
    await shop.build()
    await named(shop, "copy", str(shop.docs / "hours.md"))
    context = await shop.open("shop+copy", approximate=True)
    single = shop.catalog.get("shop")
    assert single is not None and len(single.shards) > 1 and len(context.record.shards) > 1
    assert context.approximate is not None
    assert set(context.approximate.blend.parts) > {s.system for s in single.shards}
    answer = await ask(shop.backend, context, "opening time?")
    assert answer.text == "9" and answer.approximate and "approximate" in answer.notes[0]


async def test_what_cannot_be_approximate_is_refused(bench: Shop) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="one context"):
        await opened(bench, "shop")
    with pytest.raises(UnknownName):
        await opened(bench, "shop+nothing")
    context = await opened(bench)
    with pytest.raises(UsageError, match="exact composition"):
        Session(bench.backend, bench.catalog, context, "talk")


@pytest.mark.parametrize(
    ("section", "said"),
    [(ContextSection(blend_share=1.5), "blend_share"), (ContextSection(blend_by="x"), "blend_by")],
)
def test_knobs_that_make_no_sense(section: ContextSection, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        blend_of(("a", "b"), section)


def test_words_for_people() -> None:
    blend = Blend(("a", "b"), 0.2, "deviation")
    agreed = Agreed(100, 0.5, 0.25, 3, 2)
    assert str(blend) == "20 % computed again (most deviating)"
    assert "right" not in str(agreed) and str(agreed).startswith("of 3 questions 2 answered")
    value = Approximate("a+b", blend, agreed).to_json()
    assert value["share"] == 0.2 and value["agreement"]["divergence"] == 0.25
    assert Approximate("a+b", blend).to_json()["agreement"] is None
