"""The plan of a context: what fits stays whole, what does not is split and nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.config import ContextSection
from preread.contexts.catalog.base import ContextRecord, Part, ShardRecord, SourceRecord
from preread.contexts.fit import capacity
from preread.contexts.shard import Plan, Sized, merged, pack, plan_shards, uncovered
from preread.errors import ContextTooLong, SourceError
from preread.testing.backend import FakeBackend
from tests.contexts.made import NOW, source

ROOM = ContextSection(answer_room=10, max_tokens=10)


def prose(lines: int, words: int = 6, mark: str = "w") -> str:
    return "\n".join(" ".join(f"{mark}{n}.{k}" for k in range(words)) for n in range(lines))


async def plan(
    sources: list[SourceRecord], limit: int, previous: ContextRecord | None = None
) -> Plan:
    return await plan_shards(FakeBackend(limit=limit), sources, "Read.", ROOM, previous)


def held(found: Plan, sources: list[SourceRecord]) -> list[str]:
    """Every line that stands in a shard, in order."""
    return [
        line
        for shard in found.shards
        for part in shard.parts
        for line in sources[part.source].text[part.start : part.end].split("\n")
        if line.strip()
    ]


def record_of(found: Plan, sources: list[SourceRecord]) -> ContextRecord:
    shards = tuple(
        ShardRecord(shard.text, (), tokens, 0, (), shard.parts)
        for shard, tokens in zip(found.shards, found.tokens, strict=True)
    )
    return ContextRecord("x", 1, "fake", "f", "Read.", tuple(sources), shards, NOW, None, ())


async def test_what_fits_is_one_shard() -> None:
    sources = [source("a.md", prose(3)), source("b.md", prose(3))]
    found = await plan(sources, 200)
    assert len(found.shards) == 1
    assert found.shards[0].parts == (
        Part(0, 0, len(sources[0].text)),
        Part(1, 0, len(sources[1].text)),
    )
    fit = found.fit
    assert (fit.limit, fit.effective, fit.needed, fit.shards) == (200, 200, 20, 1)
    assert fit.tokens == fit.fullest == found.tokens[0] == 200 - fit.room
    assert "room for question and answer" in fit.describe() and "not measured" in fit.describe()


async def test_the_effective_limit_decides() -> None:
    sources = [source("a.md", prose(20))]
    backend = FakeBackend(limit=500, effective_limit=90)
    found = await plan_shards(backend, sources, "Read.", ROOM)
    assert len(found.shards) == 2 and max(found.tokens) <= 70
    assert found.fit.effective == 90 and "2 shards" in found.fit.describe()


async def test_files_stay_whole_while_they_fit_a_shard() -> None:
    sources = [source(f"{n}.md", prose(5)) for n in range(7)]
    found = await plan(sources, 120)
    assert [len(shard.parts) for shard in found.shards] == [3, 3, 1]
    assert all(p.end == len(sources[p.source].text) for s in found.shards for p in s.parts)


async def test_a_long_file_is_cut_at_headings_first() -> None:
    text = "\n\n".join(f"# Part {n}\n{prose(3, mark=str(n))}" for n in range(6))
    sources = [source("a.md", text)]
    found = await plan(sources, 90)
    starts = [text[p.start :].split("\n")[0] for s in found.shards for p in s.parts]
    assert len(starts) > 1 and all(start.startswith("# Part") for start in starts)
    assert all(len(shard.parts) == 1 for shard in found.shards)


async def test_a_long_line_is_cut_at_sentences() -> None:
    text = " ".join(f"This is sentence number {n}." for n in range(30))
    sources = [source("a.md", text)]
    found = await plan(sources, 90)
    pieces = [text[p.start : p.end] for s in found.shards for p in s.parts]
    assert len(pieces) > 1
    assert all(p.startswith("This is") and p.endswith(".") for p in pieces)
    assert " ".join(pieces) == text


async def test_a_sentence_longer_than_a_shard_is_named() -> None:
    text = "short\n\n" + "word " * 200
    with pytest.raises(SourceError, match=r"docs/a\.md, line 3: one sentence of 2\d\d tokens"):
        await plan([source("docs/a.md", text.strip())], 90)


async def test_no_room_for_documents_is_said() -> None:
    with pytest.raises(ContextTooLong, match=r"answer_room"):
        capacity(FakeBackend(limit=20).info, ROOM)
    with pytest.raises(ContextTooLong, match="instructions alone"):
        await plan_shards(FakeBackend(limit=60), [source("a.md", prose(9))], "do " * 50, ROOM)


async def test_few_calls_are_made() -> None:
    backend = FakeBackend(limit=100)
    await plan_shards(backend, [source("a.md", prose(200))], "Read.", ROOM)
    assert len(backend.calls) < 12


LINES = st.lists(
    st.sampled_from(["", "# head", "one", "two words", "a line of six words. Then four.", "| t |"]),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=5), st.integers(45, 130))
async def test_the_shards_hold_every_line_once(documents: list[list[str]], limit: int) -> None:
    texts = [
        "\n".join([f"first line of {i}", *lines]).rstrip() for i, lines in enumerate(documents)
    ]
    sources = [source(f"{i}.md", text) for i, text in enumerate(texts)]
    found = await plan(sources, limit)
    words = [word for text in texts for word in text.split()]
    assert [word for line in held(found, sources) for word in line.split()] == words
    assert max(found.tokens) <= limit - 20
    if len(found.shards) == 1:
        return
    assert found.fit.tokens > limit - 20  # split only when it must be


async def test_an_edit_leaves_the_other_shards_alone() -> None:
    sources = [source(f"{n}.md", prose(5, mark=f"f{n}-")) for n in range(9)]
    first = await plan(sources, 120)
    assert len(first.shards) >= 3
    edited = [*sources]
    edited[0] = source("0.md", prose(6, mark="new"))
    second = await plan(edited, 120, record_of(first, sources))
    kept = {s.text for s in first.shards} & {s.text for s in second.shards}
    assert len(kept) == len(first.shards) - 1
    assert sorted(held(second, edited)) == sorted(
        line for s in edited for line in s.text.split("\n")
    )


async def test_other_instructions_keep_no_shard() -> None:
    sources = [source(f"{n}.md", prose(5)) for n in range(9)]
    previous = record_of(await plan(sources, 120), sources)
    again = await plan_shards(FakeBackend(limit=120), sources, "Else.", ROOM, previous)
    assert all(shard.text.startswith("Else.") for shard in again.shards)


async def test_keeping_shards_costs_at_most_one_more() -> None:
    sources = [source(f"{n}.md", prose(1, mark=f"{n}-")) for n in range(12)]
    first = await plan(sources, 60)
    previous = record_of(first, sources)
    # Pretend an earlier plan had put every document into a shard of its own.
    alone = tuple(
        ShardRecord(f"Read.\n\n[{s.path}]\n{s.text}", (i,), 9, 0, (), (Part(i, 0, len(s.text)),))
        for i, s in enumerate(sources)
    )
    again = await plan(sources, 60, replace(previous, shards=alone))
    assert len(again.shards) == len(first.shards)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(20, 60))
def test_packing_is_complete_minimal_and_balanced(sizes: list[int], room: int) -> None:
    items = [Sized(Part(i, 0, 1), size, 0) for i, size in enumerate(sizes)]
    runs = pack(items, room)
    assert [part for run in runs for part in run] == [item.part for item in items]
    sums = [sum(sizes[part.source] for part in run) for run in runs]
    assert max(sums) <= room
    assert len(runs) == fewest(sizes, room)
    if max(sums) > max(sizes):
        assert fewest(sizes, max(sums) - 1) > len(runs)


def fewest(sizes: list[int], room: int) -> int:
    """The slow twin: fewest consecutive runs, by dynamic programming."""
    best = [0]
    for end in range(1, len(sizes) + 1):
        starts = [s for s in range(end) if sum(sizes[s:end]) <= room]
        best.append(min((best[s] + 1 for s in starts), default=10**9))
    return best[-1]


def test_neighbours_of_one_source_join_only_across_white_space() -> None:
    sources = [source("a.md", "one\n\ntwo\nheld\nend")]
    first, second, last = Part(0, 0, 3), Part(0, 5, 8), Part(0, 14, 17)
    assert merged([first, second, last], sources) == (Part(0, 0, 8), last)
    assert uncovered(sources, [Part(0, 9, 13)]) == [Part(0, 0, 8), last]
