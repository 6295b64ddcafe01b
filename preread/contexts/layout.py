"""The one place that lays out the leading message of a context.

    instructions
                                  <- one blank line
    [handbook/leave.md]
    text of the document
                                  <- one blank line
    [handbook/orders.md]
    …

The bundled reader is trained on exactly this. The way back, from a place in the message to a line
of a file, is kept as offsets and never parsed from the text: a document may contain anything.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from preread.contexts.catalog.base import Part, SourceRecord

DEFAULT_INSTRUCTIONS = (
    "Answer the question from the documents below, in as few words as possible. "
    "If the documents do not say, answer: not stated"
)
NOT_STATED = "not stated"
GAP = "\n\n"


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a source, as a citation names it (the file's own line, from 1)."""

    source: str
    line: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A leading message and the way back. offsets[i]: where the text of parts[i] begins in text."""

    text: str
    parts: tuple[Part, ...]
    offsets: tuple[int, ...]

    def place(self, offset: int, sources: Sequence[SourceRecord]) -> Place | None:
        """Where the character at `offset` of the message stands; None for instructions, headers
        and gaps."""
        i = bisect_right(self.offsets, offset) - 1
        if i < 0:
            return None
        part = self.parts[i]
        at = part.start + offset - self.offsets[i]
        if at >= part.end:
            return None
        source = sources[part.source]
        return Place(source.path, file_line(source, at))

    def place_of_line(self, line: int, sources: Sequence[SourceRecord]) -> Place | None:
        """The same for a line of the message, counted from 1."""
        offset = -1
        for _ in range(line - 1):
            offset = self.text.find("\n", offset + 1)
            if offset < 0:
                return None
        return self.place(offset + 1, sources)


def lay_out(instructions: str, sources: Sequence[SourceRecord], parts: Sequence[Part]) -> Layout:
    """The leading message of `parts`; a source cut in two gets its header twice."""
    pieces = [instructions.rstrip()] if instructions.strip() else []
    length = len(pieces[0]) if pieces else 0
    offsets = []
    for part in parts:
        header = f"[{sources[part.source].path}]\n"
        piece = header + sources[part.source].text[part.start : part.end]
        length += len(GAP) if pieces else 0
        offsets.append(length + len(header))
        length += len(piece)
        pieces.append(piece)
    return Layout(GAP.join(pieces), tuple(parts), tuple(offsets))


def whole(sources: Sequence[SourceRecord]) -> tuple[Part, ...]:
    """Every source in one part, in order."""
    return tuple(Part(i, 0, len(source.text)) for i, source in enumerate(sources))


def file_line(source: SourceRecord, offset: int) -> int:
    """The file's own line (from 1) of a character of the source's text."""
    index = source.text.count("\n", 0, offset)
    return source.line_map[index] if source.line_map else index + 1


def is_not_stated(answer: str) -> bool:
    """Whether an answer says that the documents do not say."""
    return answer.strip(" \n\t.\"'").casefold() == NOT_STATED
