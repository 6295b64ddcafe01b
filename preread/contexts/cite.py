"""Citations are found and checked by code: where in the documents does the answer stand?

`exact`: the words of the answer stand there in a row (white space, case, Markdown emphasis and the
shape of quotes and dashes apart). `fuzzy`: at least two thirds of its content words and every
number stand within three lines. `none`: nothing supports it. Of several places the one is taken
whose surroundings share most with the question, rare words counting more. No model has a say.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice

from preread.contexts.catalog.base import Part, SourceRecord
from preread.contexts.layout import is_not_stated
from preread.contexts.words import content_stems, stems
from preread.types import Citation, Match

SEPARATOR = r"[\s*_`]+"
VARIANTS = {"'": "['’‘]", "’": "['’‘]", '"': '["“”„]', "“": '["“”„]', "”": '["“”„]'}
VARIANTS |= dict.fromkeys("-‐‑–—", "[-‐‑–—]")
QUOTED = re.compile(r"[\"“„]([^\"“”„]{8,}?)[\"“”]")
ITEMS = re.compile(r"\n+|;\s*|,\s+(?:and\s+|or\s+)?|(?<=[.!?])\s+|\s+and\s+")
MARKS = re.compile(r"^(?:[\s\"'“”‘’*_`•]|-\s)+|[\s\"'“”‘’*_`.,;:!?]+$")
BOUND = "\n\0\n"  # between documents: sources hold no NUL, so that no match can cross it
MAX_PLACES = 2000
MAX_CITATIONS = 8
QUOTE = 200
WINDOW = 3
UNSUPPORTED = Citation("", 0, 0, "", "none")

Found = tuple[int, int]  # [start, end) in the joined text


class Evidence:
    """Stretches of documents, indexed once and searched per answer."""

    def __init__(self, sources: Sequence[SourceRecord], parts: Sequence[Part]) -> None:
        self._sources = sources
        self._parts = [part for part in parts if part.start < part.end]
        self._text = BOUND.join(sources[p.source].text[p.start : p.end] for p in self._parts)

    def cite(self, answer: str, question: str = "") -> tuple[Citation, ...]:
        """Nothing for an empty answer or "not stated"; one entry with match `none` when nothing
        supports the answer; else at most 8 places."""
        answer = MARKS.sub("", answer)
        if not answer or is_not_stated(answer):
            return ()
        if whole := self._exact(answer, question):
            return (self._citation(whole, "exact"),)
        return self._in_pieces(answer, question)

    def _in_pieces(self, answer: str, question: str) -> tuple[Citation, ...]:
        """Not verbatim as a whole: by its quotes, or all its items verbatim, else nearly so within
        a few lines, else item by item. A JSON answer is its values."""
        values = _values(answer)
        items = ITEMS.split(answer) if values is None else values
        if values is None:
            quotes = [self._look_up(q, question, fuzzy=False) for q in QUOTED.findall(answer)]
            exact = [self._look_up(item, question, fuzzy=False) for item in items]
            found = [quote for quote in quotes if quote]
            if not found and all(exact):
                found = [item for item in exact if item]
            if not found and (nearly := self._fuzzy(answer, question)):
                found = [self._citation(nearly, "fuzzy")]
            if found:
                return tuple(dict.fromkeys(found))[:MAX_CITATIONS]
        looked_up = dict.fromkeys(self._look_up(item, question) for item in items if item)
        found = [citation for citation in looked_up if citation][:MAX_CITATIONS]
        return (*found, UNSUPPORTED) if None in looked_up or not found else tuple(found)

    def _look_up(self, words: str, question: str, fuzzy: bool = True) -> Citation | None:
        words = MARKS.sub("", words)
        if place := self._exact(words, question):
            return self._citation(place, "exact")
        if fuzzy and words and (place := self._fuzzy(words, question)):
            return self._citation(place, "fuzzy")
        return None

    def _exact(self, words: str, question: str) -> Found | None:
        pattern = _pattern(words)
        if pattern is None:
            return None
        places = [m.span() for m in islice(pattern.finditer(self._text), MAX_PLACES)]
        if len(places) < 2:
            return places[0] if places else None
        asked = content_stems(question) - stems(words)
        return max(places, key=lambda place: self._closeness(*self._rows(place), asked))

    def _fuzzy(self, answer: str, question: str) -> Found | None:
        wanted = content_stems(answer)
        numbers = {w for w in wanted if any(c.isdigit() for c in w)}
        enough = math.ceil(len(wanted) * 2 / 3)
        asked = content_stems(question) - wanted
        best: tuple[tuple[float, ...], Found] | None = None
        for first, here in enumerate(self._stems):
            if wanted.isdisjoint(here):
                continue
            held: set[str] = set()
            for last in range(first, min(first + WINDOW, len(self._stems))):
                if not self._beside(last, first):
                    break
                held |= self._stems[last] & wanted
                if len(held) < enough or not numbers <= held:
                    continue
                closeness = self._closeness(first, last, asked)
                rank = (len(held), first - last, closeness)
                if best is None or rank > best[0]:
                    best = rank, (self._starts[first], self._end(last))
        return best[1] if best else None

    def _closeness(self, first: int, last: int, asked: set[str]) -> float:
        """How much of the question stands around lines first..last: in them (1), within two lines
        of them or in the heading above (1/2), in the document's path (1/4); each word by rarity."""
        here = frozenset().union(*self._stems[first : last + 1])
        around = frozenset().union(*(self._stems[row] for row in self._near(first, last)))
        path = stems(self._sources[self._parts[self._document[first]].source].path)
        return sum(
            self._rarity(w) * (1.0 if w in here else 0.5 if w in around else 0.25)
            for w in asked
            if w in here or w in around or w in path
        )

    def _near(self, first: int, last: int) -> Iterator[int]:
        """Two lines on either side and the heading above, all under that heading."""
        for row in range(last + 1, min(last + 3, len(self._stems))):
            if not self._beside(row, first) or self._is_heading(row):
                break
            yield row
        for row in range(first, max(-1, first - 100), -1):
            if not self._beside(row, first):
                break
            if first - row <= 2 or self._is_heading(row):
                yield row
            if self._is_heading(row):
                break

    def _beside(self, row: int, other: int) -> bool:
        return self._document[row] == self._document[other]

    def _is_heading(self, row: int) -> bool:
        return self._text.startswith("#", self._starts[row])

    def _rarity(self, stem: str) -> float:
        return math.log(1 + len(self._stems) / (1 + self._frequency[stem]))

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(m.end() for m in re.finditer("\n", self._text))]

    @cached_property
    def _document(self) -> list[int]:
        """For each line of the joined text, which part it belongs to (a bound ends one)."""
        document, rows = 0, []
        for start in self._starts:
            document += self._text.startswith("\0", start)
            rows.append(document)
        return rows

    @cached_property
    def _stems(self) -> list[frozenset[str]]:
        return [frozenset(stems(line)) for line in self._text.split("\n")]

    @cached_property
    def _frequency(self) -> Counter[str]:
        return Counter(stem for line in self._stems for stem in line)

    def _end(self, row: int) -> int:
        return self._starts[row + 1] - 1 if row + 1 < len(self._starts) else len(self._text)

    def _rows(self, place: Found) -> tuple[int, int]:
        return bisect_right(self._starts, place[0]) - 1, bisect_right(
            self._starts, place[1] - 1
        ) - 1

    def _citation(self, place: Found, match: Match) -> Citation:
        first, last = self._rows(place)
        document = self._document[first]
        part = self._parts[document]
        source = self._sources[part.source]
        above = source.text.count("\n", 0, part.start) + first - self._document.index(document)
        above -= 1 if document else 0  # the line of the bound itself
        lines = [
            source.line_map[row] if source.line_map else row + 1
            for row in (above, above + last - first)
        ]
        return Citation(
            source=source.path,
            start_line=lines[0],
            end_line=lines[1],
            quote=self._quote(place, self._starts[first], self._end(last)),
            match=match,
        )

    def _quote(self, place: Found, start: int, end: int) -> str:
        """The lines themselves, or the words around the place when they are long."""
        if end - start <= QUOTE:
            return self._text[start:end].strip()
        spare = max(0, QUOTE - (place[1] - place[0])) // 2
        left, right = max(start, place[0] - spare), min(end, place[1] + spare, place[0] + 2 * QUOTE)
        quote = self._text[left:right]
        if left > start:
            quote = "…" + quote.partition(" ")[2] if " " in quote[:spare] else "…" + quote
        if right < end:
            quote = quote.rpartition(" ")[0] + "…" if " " in quote[-spare:] else quote + "…"
        return quote.strip()


def grounded(citations: Iterable[Citation]) -> int:
    """2: something stands verbatim in the sources, 1: nearly so, 0: nothing does."""
    return max(({"exact": 2, "fuzzy": 1, "none": 0}[c.match] for c in citations), default=0)


def _pattern(words: str) -> re.Pattern[str] | None:
    """Words in a row, wherever lines break between them, never from within a word or number."""
    pieces = [piece for word in words.split() if (piece := word.strip("*_`"))]
    if not pieces:
        return None
    body = SEPARATOR.join("".join(VARIANTS.get(c, re.escape(c)) for c in piece) for piece in pieces)
    before, after = _edges(pieces[0], pieces[-1])
    return re.compile(before + body + after, re.IGNORECASE)


def _edges(first: str, last: str) -> tuple[str, str]:
    """What must not stand before and after a match: the rest of a word ("tokens" is not
    "max_tokens", but it is "_tokens_") or of a number ("5" is neither "1.5" nor "5:30", "500" is
    not "1,500"; other commas may part the fields of a CSV line)."""
    before = r"(?<![^\W_])(?<![^\W_]_)" if first[0].isalnum() else ""
    after = r"(?![^\W_]|_+[^\W_])" if last[-1].isalnum() else ""
    if digits := re.match(r"\d+", first):
        before += r"(?<!\d[.:'’])" + (r"(?<!\d,)" if len(digits[0]) == 3 else "")
    if digits := re.search(r"\d+$", last):
        after += r"(?![.:'’]\d)" + (r"(?!,\d{3}(?!\d))" if len(digits[0]) <= 3 else "")
    return before, after


def _values(answer: str) -> list[str] | None:
    """The values of a JSON answer; None for text."""
    if answer[:1] not in ("{", "["):
        return None
    try:
        return list(_leaves(json.loads(answer)))
    except ValueError:
        return None  # text that begins like JSON


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)
