"""Citations: where an answer stands, or that it stands nowhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.contexts.catalog.base import Part
from preread.contexts.cite import Evidence, grounded
from preread.contexts.layout import whole
from preread.types import Citation
from tests.contexts.made import source

LEAVE = source(
    "handbook/leave.md",
    """# Leave

You get **25 days** a year. Unused days must be
taken by the end of March.

## Sick leave

Tell Odile Marchetti before 9:30.
A note is needed after 3 days.""",
)
HOURS = source(
    "handbook/hours.md",
    """# Hours
The workshop closes at 17:00.
The showroom closes at 18:00.
On Fridays the workshop closes at 13:00.

| Matter | Person | Extension |
| --- | --- | --- |
| Pay | Odile Marchetti | 212 |
| Safety | Ruth Abara | 231 |""",
)
BOOK = Evidence([LEAVE, HOURS], whole([LEAVE, HOURS]))


def where(
    answer: str, question: str = "", book: Evidence = BOOK
) -> list[tuple[str, int, int, str]]:
    found = book.cite(answer, question)
    return [(c.source.removeprefix("handbook/"), c.start_line, c.end_line, c.match) for c in found]


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("Ruth Abara", ("hours.md", 9, 9)),
        ("ruth   abara.", ("hours.md", 9, 9)),
        ('"Ruth Abara"', ("hours.md", 9, 9)),
        ("25 days a year", ("leave.md", 3, 3)),  # emphasis is no content
        ("must be taken by the end of March", ("leave.md", 3, 4)),  # over a line end
        ("9:30", ("leave.md", 8, 8)),
        ("13:00", ("hours.md", 4, 4)),
    ],
)
def test_exact(answer: str, place: tuple[str, int, int]) -> None:
    assert where(answer) == [(*place, "exact")]


def test_never_from_within_a_word() -> None:
    assert where("31") == [("", 0, 0, "none")]  # of 231
    assert where("mar") == [("", 0, 0, "none")]


PRICES = source("a.md", "1.5 weeks for 1,500 euros at _Ruth_ from 9:30, set max_tokens to 34.")


@pytest.mark.parametrize(
    "answer", ["5 weeks", "1", "500 euros", "500", "9", "30", "tokens", "3*4", "max"]
)
def test_never_from_within_a_number_or_identifier(answer: str) -> None:
    assert where(answer, book=Evidence([PRICES], whole([PRICES]))) == [("", 0, 0, "none")]


@pytest.mark.parametrize(
    "answer", ["1.5 weeks", "1,500", "Ruth", "_Ruth_", "9:30", "max_tokens", "`max_tokens`", "34"]
)
def test_whole_numbers_identifiers_and_emphasis(answer: str) -> None:
    assert where(answer, book=Evidence([PRICES], whole([PRICES]))) == [("a.md", 1, 1, "exact")]


@pytest.mark.parametrize("field", ["Lyon", "1500", "37", "2024"])
def test_fields_of_a_csv_line_are_no_thousands(field: str) -> None:
    table = source("a.csv", "Lyon,2024,1500,37")
    assert where(field, book=Evidence([table], whole([table]))) == [("a.csv", 1, 1, "exact")]


@pytest.mark.parametrize(
    ("question", "place"),
    [
        ("Who has to be told when I am sick?", ("leave.md", 8)),
        ("Whom do I ask about pay?", ("hours.md", 8)),
    ],
)
def test_of_several_places_the_one_the_question_is_about(
    question: str, place: tuple[str, int]
) -> None:
    assert where("Odile Marchetti", question) == [(*place, place[1], "exact")]


def test_the_heading_above_counts() -> None:
    text = "# Alpha\n" + "filler\n" * 9 + "Price: 40\n# Beta\n" + "filler\n" * 9 + "Price: 40"
    book = Evidence([source("a.md", text)], whole([source("a.md", text)]))
    assert where("40", "What is the price of Alpha?", book) == [("a.md", 11, 11, "exact")]
    assert where("40", "What is the price of Beta?", book) == [("a.md", 22, 22, "exact")]


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("Ruth Abara, extension 231", ("hours.md", 7, 9)),
        ("It closes at 13:00 on Fridays", ("hours.md", 4, 4)),
        ("A note is necessary after 3 days", ("leave.md", 9, 9)),
    ],
)
def test_fuzzy(answer: str, place: tuple[str, int, int]) -> None:
    ((source_, start, end, match),) = where(answer)
    assert match == "fuzzy" and source_ == place[0]
    assert place[1] <= start <= end <= place[2]


def test_a_wrong_number_is_not_nearly_right() -> None:
    assert where("The workshop closes at 13:30 on Fridays") == [("", 0, 0, "none")]


def test_what_stands_nowhere_is_said() -> None:
    assert BOOK.cite("forty-two llamas") == (Citation("", 0, 0, "", "none"),)
    assert grounded(BOOK.cite("forty-two llamas")) == 0


@pytest.mark.parametrize("answer", ["", "  ", "not stated", "Not stated."])
def test_no_answer_needs_no_citation(answer: str) -> None:
    assert BOOK.cite(answer) == ()


def test_a_list_is_cited_item_by_item() -> None:
    assert where("Ruth Abara and Odile Marchetti", "sick leave note") == [
        ("hours.md", 9, 9, "exact"),
        ("leave.md", 8, 8, "exact"),
    ]
    assert where("the end of March; 18:00; purple") == [
        ("leave.md", 4, 4, "exact"),
        ("hours.md", 3, 3, "exact"),
        ("", 0, 0, "none"),
    ]


def test_quotes_in_an_answer_are_looked_up() -> None:
    found = where('The rule says "taken by the end of March", as I read it.')
    assert found == [("leave.md", 4, 4, "exact")]


def test_values_of_a_json_answer_are_cited() -> None:
    answer = '{"closes": "18:00", "who": ["Ruth Abara"], "sure": true}'
    assert where(answer) == [("hours.md", 3, 3, "exact"), ("hours.md", 9, 9, "exact")]


def test_only_what_was_read_is_evidence() -> None:
    start = LEAVE.text.index("Tell")
    book = Evidence([LEAVE, HOURS], [Part(0, start, len(LEAVE.text)), Part(1, 0, 40)])
    assert where("Odile Marchetti", "pay", book) == [("leave.md", 8, 8, "exact")]
    assert where("25 days a year", "", book) == [("", 0, 0, "none")]
    assert where("workshop", "", book) == [("hours.md", 2, 2, "exact")]


def test_lines_are_those_of_the_file() -> None:
    page = source("a.html", "Head\nThe price is 4 euros.", (12, 40))
    assert where("4 euros", "", Evidence([page], whole([page]))) == [("a.html", 40, 40, "exact")]


def test_a_match_never_crosses_documents() -> None:
    sources = [source("a.md", "ends with alpha"), source("b.md", "beta begins")]
    assert where("alpha beta", "", Evidence(sources, whole(sources)))[0][3] != "exact"


def test_quotes_are_lines_or_a_window() -> None:
    (short,) = BOOK.cite("17:00")
    assert short.quote == "The workshop closes at 17:00."
    text = "word " * 200 + "the answer is 42 here " + "word " * 200
    long = Evidence([source("a.md", text)], [Part(0, 0, len(text))])
    (cut,) = long.cite("the answer is 42")
    assert cut.quote.startswith("…word") and cut.quote.endswith("word…")
    assert "the answer is 42" in cut.quote and len(cut.quote) <= 210


def test_a_megabyte_is_searched() -> None:
    lines = [f"Entry {n} of the register belongs to owner {n % 97}." for n in range(22_000)]
    lines[15_000] = "The lighthouse keeper is called Agnes Pell."
    big = source("big.txt", "\n".join(lines))
    assert len(big.text) > 1_000_000
    book = Evidence([big], whole([big]))
    assert where("Agnes Pell", "Who keeps the lighthouse?", book) == [
        ("big.txt", 15_001, 15_001, "exact")
    ]
    assert where("her name is Agnes Pell, keeper", "", book)[0][1] == 15_001
    assert where("owner 13", "entry 2020 of the register", book)[0][3] == "exact"


WORDS = st.lists(
    st.sampled_from(
        ["red", "Blue", "7", "12.5", "it's", "co-op", "é", "**b**", "\n", "\n\n", "# H\n"]
    )
)


@given(WORDS, st.data())
def test_what_was_copied_is_found_where_it_stands(words: list[str], data: st.DataObject) -> None:
    text = " ".join(words)
    tokens = text.split()
    document = source("a.md", text)
    book = Evidence([document], whole([document]))
    if not tokens:
        assert book.cite("red") == (Citation("", 0, 0, "", "none"),)
        return
    first = data.draw(st.integers(0, len(tokens) - 1))
    last = data.draw(st.integers(first, min(len(tokens) - 1, first + 6)))
    copied = " ".join(tokens[first : last + 1])
    for citation in book.cite(copied):
        assert citation.match == "exact"
        lines = text.split("\n")[citation.start_line - 1 : citation.end_line]
        begin = copied.replace("*", "").lstrip("# ").split()[:1] or ["#"]
        assert begin[0].casefold() in " ".join(lines).casefold()


@given(st.text(max_size=200), st.text(max_size=60), st.text(max_size=30))
def test_any_text_is_cited_without_failing(text: str, answer: str, question: str) -> None:
    document = source("a.md", text.replace("\0", ""))
    for citation in Evidence([document], whole([document])).cite(answer, question):
        assert 0 <= citation.start_line <= citation.end_line <= text.count("\n") + 1
