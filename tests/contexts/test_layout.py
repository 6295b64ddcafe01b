"""The leading message, and the way back from it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from preread.contexts.catalog.base import Part
from preread.contexts.layout import (
    DEFAULT_INSTRUCTIONS,
    Place,
    file_line,
    is_not_stated,
    lay_out,
    whole,
)
from tests.contexts.made import source

LEAVE = source("handbook/leave.md", "# Leave\n25 days.")
ORDERS = source("handbook/orders.html", "Orders\nclose\nat 5", (3, 7, 9))


def test_is_what_the_reader_is_trained_on() -> None:
    laid = lay_out(DEFAULT_INSTRUCTIONS, [LEAVE, ORDERS], whole([LEAVE, ORDERS]))
    assert laid.text == (
        "Answer the question from the documents below, in as few words as possible. "
        "If the documents do not say, answer: not stated\n\n"
        "[handbook/leave.md]\n# Leave\n25 days.\n\n[handbook/orders.html]\nOrders\nclose\nat 5"
    )


def test_no_instructions_and_no_documents_leave_no_gap() -> None:
    assert lay_out("", [LEAVE], whole([LEAVE])).text == "[handbook/leave.md]\n# Leave\n25 days."
    assert lay_out("Be brief.\n", [LEAVE], ()).text == "Be brief."


def test_leads_back_to_file_and_line() -> None:
    sources = [LEAVE, ORDERS]
    laid = lay_out("Read.", sources, whole(sources))
    at = laid.text.index
    assert laid.place(at("25"), sources) == Place("handbook/leave.md", 2)
    assert laid.place(at("close"), sources) == Place("handbook/orders.html", 7)
    assert laid.place(0, sources) is None
    assert laid.place(at("[handbook/orders"), sources) is None
    lines = [laid.place_of_line(n, sources) for n in range(1, 10)]
    assert [p.line if p else None for p in lines] == [None, None, None, 1, 2, None, None, 3, 7]
    assert laid.place_of_line(99, sources) is None


def test_a_part_of_a_document_keeps_its_lines() -> None:
    text = "one\ntwo\nthree\nfour"
    laid = lay_out("", [source("a.md", text)], (Part(0, 8, 13),))
    assert laid.text == "[a.md]\nthree"
    assert laid.place_of_line(2, [source("a.md", text)]) == Place("a.md", 3)


@given(st.lists(st.text("ab \n[]", min_size=1), min_size=1, max_size=4))
def test_every_character_leads_back_to_itself(texts: list[str]) -> None:
    sources = [source(f"{i}.md", text) for i, text in enumerate(texts)]
    laid = lay_out("Read.", sources, whole(sources))
    for i, offset in enumerate(laid.offsets):
        for k in range(len(texts[i])):
            expected = Place(f"{i}.md", texts[i][:k].count("\n") + 1)
            assert laid.place(offset + k, sources) == expected


def test_file_lines_follow_the_map() -> None:
    assert [file_line(ORDERS, n) for n in (0, 6, 7, 13)] == [3, 3, 7, 9]


def test_knows_the_answer_that_is_none() -> None:
    assert all(map(is_not_stated, ["not stated", " Not stated.\n", '"not stated"']))
    assert not any(map(is_not_stated, ["", "not stated in full", "stated"]))
