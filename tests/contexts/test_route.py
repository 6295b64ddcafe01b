"""Questions find their shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from preread.contexts.catalog.base import ContextRecord, Part, ShardRecord
from preread.contexts.layout import whole
from preread.contexts.route import Router, SectionIndex, embed_sections, nearest, paired
from preread.errors import RequestError
from tests.contexts.made import NOW, source

TEXTS = {
    "leave.md": "# Leave\nEmployees take twenty-five days.\n\nCarried over until March.",
    "tools.md": "# Tools\nThe ladders hang in the yard.",
    "orders.md": "# Orders\nInvoices go out on Fridays.",
    "visitors.md": "# Visitors\nThe feline sleeps by the stove.",
}
SOURCES = tuple(source(path, text) for path, text in TEXTS.items())


class Topics:
    """A fake embedder: one axis per topic."""

    name = "topics"
    words = (("leave", "holiday", "days"), ("ladder", "tools"), ("invoice",), ("cat", "feline"))

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        return [[float(any(w in t.casefold() for w in axis)) for axis in self.words] for t in texts]


def record() -> ContextRecord:
    shards = tuple(
        ShardRecord("", (i,), 9, 0, (), (Part(i, 0, len(s.text)),)) for i, s in enumerate(SOURCES)
    )
    return ContextRecord("x", 1, "fake", "f", "", SOURCES, shards, NOW, None, ())


@pytest.mark.parametrize(
    ("question", "shard"),
    [
        ("How many days of leave do I get?", 0),
        ("Where does the ladder hang?", 1),  # the stem finds the plural
        ("When is an INVOICE sent?", 2),
    ],
)
def test_the_best_shard_comes_first_with_its_reason(question: str, shard: int) -> None:
    route = Router(record()).route(question, 2)
    assert route.shards[0] == shard and len(route.shards) == 2
    assert SOURCES[shard].path in route.reasons[0] and "has:" in route.reasons[0]


def test_a_context_of_few_shards_is_asked_whole() -> None:
    route = Router(record()).route("leave", 4)
    assert route.shards == (0, 1, 2, 3)


def test_a_question_that_matches_nothing_says_so() -> None:
    route = Router(record()).route("Zymurgy?", 2)
    assert route.shards == (0, 1)
    assert route.reasons == ("no shard matches better",) * 2
    assert route.note and not Router(record()).route("ladder", 2).note


@pytest.mark.parametrize(
    ("question", "shard"),
    [
        ("東京の天気はどうですか。", 1),
        ("iPhoneの価格は?", 2),
        ("猫", 3),
        ("정원에는 무엇이 있나요?", 4),
        ("价格", 2),
        ("りんごはいくら?", 5),
    ],
)
def test_scripts_without_spaces_are_searched_by_pairs(question: str, shard: int) -> None:
    texts = (
        "公園は朝九時に開きます。",
        "明日は東京都で雨が降る。",
        "新しいiPhoneの価格は九万円，价格不变。",
        "黒猫が眠っている。",
        "정원이 아름답다.",
        "りんごは百円です。",
    )
    sources = tuple(source(f"{i}.md", text) for i, text in enumerate(texts))
    shards = tuple(ShardRecord("", (i,), 9, 0, (), (p,)) for i, p in enumerate(whole(sources)))
    route = Router(replace(record(), sources=sources, shards=shards)).route(question, 1)
    assert route.shards == (shard,) and not route.note and "has:" in route.reasons[0]


def test_pairs() -> None:
    assert paired("a 東京都 b").split() == ["a", "東京", "京都", "都", "b"]
    assert paired("東京都", ends=False).split() == ["東京", "京都"]
    assert paired("都", ends=False).split() == paired("都").split() == ["都"]
    assert paired("no change") == "no change"


@pytest.mark.parametrize(
    "question", ['"', "a AND OR NOT (", "NEAR(x y)", "*", "text:leave", "é'; --", ""]
)
def test_no_question_is_read_as_a_query(question: str) -> None:
    assert len(Router(record()).route(question, 1).shards) == 1


def test_an_index_finds_sections_and_can_be_closed() -> None:
    index = SectionIndex(SOURCES, whole(SOURCES))
    (hit, *_) = index.search("carried over in March")
    assert "Carried over" in index.text(hit.part)
    assert set(hit.words) == {"Carried", "over", "March"}
    index.close()
    assert index.search("ladder")[0].part.source == 1
    index.close()


def test_vectors_are_made_once_and_find_what_words_cannot() -> None:
    made = record()
    embedding = embed_sections(Topics(), SOURCES, whole(SOURCES))
    assert embedding.dim == 4 and len(embedding.vectors) == 4 * 4 * len(embedding.sections)
    asked: list[str] = []

    class Counting(Topics):
        def __call__(self, texts: Sequence[str]) -> list[list[float]]:
            asked.extend(texts)
            return super().__call__(texts)

    router = Router(replace(made, embedding=embedding), Counting())
    route = router.route("Where is the cat?", 1)
    assert route.shards == (3,) and "meaning" in route.reasons[0]
    assert asked == ["Where is the cat?"]
    assert Router(made).route("Where is the cat?", 1).shards != (3,)


def test_both_rankings_count() -> None:
    embedding = embed_sections(Topics(), SOURCES, whole(SOURCES))
    router = Router(replace(record(), embedding=embedding), Topics())
    # Words know "Fridays" (orders), meaning knows "holiday" (leave): both are among the best two.
    assert set(router.route("holiday on Fridays", 2).shards) == {0, 2}


def test_vectors_of_another_embedder_are_refused() -> None:
    class Other(Topics):
        name = "other"

    embedding = embed_sections(Topics(), SOURCES, whole(SOURCES))
    with pytest.raises(RequestError, match="'topics', not of 'other'"):
        Router(replace(record(), embedding=embedding), Other())


@pytest.mark.parametrize("vectors", [[], [[1.0], [1.0, 2.0]], [[float("nan")]] * 9, [1.0] * 9])
def test_bad_vectors_are_refused(vectors: list[list[float]]) -> None:
    class Bad(Topics):
        def __call__(self, texts: Sequence[str]) -> list[list[float]]:
            return vectors

    with pytest.raises(RequestError, match="one vector of equal length"):
        embed_sections(Bad(), SOURCES, whole(SOURCES))


def test_a_question_of_another_length_is_refused() -> None:
    class Longer(Topics):
        def __call__(self, texts: Sequence[str]) -> list[list[float]]:
            return [[1.0] * 5 for _ in texts]

    embedding = embed_sections(Topics(), SOURCES, whole(SOURCES))
    with pytest.raises(RequestError):
        nearest(embedding, Longer(), "q")
