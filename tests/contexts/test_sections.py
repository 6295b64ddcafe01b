"""Where documents may be cut."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from preread.contexts.catalog.base import Part
from preread.contexts.sections import BOUNDS, Span, cut, divide, sections
from tests.contexts.made import source

GUIDE = """Intro line.

# One
text of one
goes on

## One a
| a | b |
| - | - |

Two
---
First sentence. Second one!  "Third?" Done."""


def pieces(text: str, level: int) -> list[str]:
    return [text[a:b] for a, b in cut(text, (0, len(text)), level)]


def test_headings_come_first() -> None:
    assert [p.split("\n")[0] for p in pieces(GUIDE, 0)] == [
        "Intro line.",
        "# One",
        "## One a",
        "Two",
    ]


def test_then_blank_lines_lines_and_sentences() -> None:
    assert pieces("a\nb\n\n \nc", 1) == ["a\nb", "c"]
    assert pieces("a\n  b\n\nc", 2) == ["a", "  b", "c"]
    assert pieces('One. Two! "Three?" Four 1.5 five', 3) == [
        "One.",
        "Two!",
        '"Three?"',
        "Four 1.5 five",
    ]
    assert pieces("一。二！三", 3) == ["一。", "二！", "三"]


DOCUMENTS = st.lists(
    st.sampled_from(["word", "a.", "b! ", "# ", "\n", "\n\n", "  ", "===", "---", "|", "é。"])
).map("".join)


@given(DOCUMENTS, st.integers(1, 40))
def test_cutting_loses_only_white_space_and_keeps_words(text: str, size: int) -> None:
    def too_long(span: Span) -> bool:
        return span[1] - span[0] > size

    for spans in [
        *(cut(text, (0, len(text)), level) for level in range(len(BOUNDS))),
        divide(text, (0, len(text)), too_long),
    ]:
        at = 0
        for start, end in spans:
            assert not text[at:start].strip() and start <= end
            # A cut stands at white space, or after a full stop that needs none.
            assert start == 0 or not re.fullmatch(r"\w\w", text[start - 1 : start + 1])
            at = end
        assert not text[at:].strip()


def test_sections_fill_up_but_begin_at_headings() -> None:
    text = (
        "# A\n" + "\n\n".join(f"Paragraph {n} says a little." for n in range(40)) + "\n\n# B\nend"
    )
    found = sections([source("a.md", text)], [Part(0, 0, len(text))], size=200)
    sizes = [p.end - p.start for p in found]
    assert max(sizes) <= 200 and min(sizes[:-2]) > 100
    assert text[found[-1].start : found[-1].end] == "# B\nend"
