"""Where a document may be cut: headings, blank lines, lines, sentences, in this order of liking.

Cutting never drops anything but white space, and never cuts inside a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from preread.contexts.catalog.base import Part, SourceRecord

Span = tuple[int, int]  # [start, end) character offsets of one text

# A cut goes before each match. Markdown and our HTML text mark headings with '#', rst underlines.
BOUNDS = (
    re.compile(r"^(?=#{1,6} )|^(?=\S[^\n]*\n([=~^*+-])\1{2,}[ \t]*$)", re.MULTILINE),
    re.compile(r"(?<=\n)[ \t]*\n(?=[ \t]*\S)"),
    re.compile(r"(?<=\n)(?=[^\n]*\S)"),
    re.compile(r"(?<=[.!?…])(?:[\"'”’)\]]*)[ \t]+(?=\S)|(?<=[。！？])"),
)


def cut(text: str, span: Span, level: int) -> list[Span]:
    """The pieces of text[start:end] between the bounds of one level, without the blank lines and
    trailing spaces between them."""
    start, end = span
    cuts = [m.end() for m in BOUNDS[level].finditer(text, start, end) if m.end() > start]
    pieces = (trim(text, piece) for piece in zip([start, *cuts], [*cuts, end], strict=True))
    return [piece for piece in pieces if piece[0] < piece[1]]


def trim(text: str, span: Span) -> Span:
    """Without blank lines before and white space behind; the first line keeps its indentation."""
    start, end = span
    piece = text[start:end].rstrip()
    lead = re.match(r"(?:[ \t]*\n)*", piece)
    return start + (lead.end() if lead else 0), start + len(piece)


def divide(text: str, span: Span, too_long: Callable[[Span], bool], level: int = 0) -> list[Span]:
    """Cut at the first level that helps, and the pieces that are still too long at the next; then
    join neighbours again while they stay short. A sentence that is too long stays whole."""
    if level == len(BOUNDS) or not too_long(span):
        return [span]
    pieces = [
        p for piece in cut(text, span, level) for p in divide(text, piece, too_long, level + 1)
    ]
    joined = pieces[:1]
    for piece in pieces[1:]:
        whole = (joined[-1][0], piece[1])
        # A heading begins a section of its own; below that level, sections fill up.
        if level > 0 and not too_long(whole):
            joined[-1] = whole
        else:
            joined.append(piece)
    return joined


def sections(
    sources: Sequence[SourceRecord], parts: Sequence[Part], size: int = 1000
) -> tuple[Part, ...]:
    """The parts in sections of about `size` characters, as routing ranks them."""
    return tuple(
        Part(part.source, *span)
        for part in parts
        for span in divide(
            sources[part.source].text, (part.start, part.end), lambda s: s[1] - s[0] > size
        )
    )
