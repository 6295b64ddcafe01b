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
from preread.types import Citation, Match

WORD = re.compile(r"\w+(?:[.,:'’-]\w+)*")
SEPARATOR = r"[\s*_`]+"
VARIANTS = {"'": "['’‘]", "’": "['’‘]", '"': '["“”„]', "“": '["“”„]', "”": '["“”„]'}
VARIANTS |= dict.fromkeys("-‐‑–—", "[-‐‑–—]")
QUOTED = re.compile(r"[\"“„]([^\"“”„]{8,}?)[\"“”]")
ITEMS = re.compile(r"\n+|;\s*|,\s+(?:and\s+|or\s+)?|(?<=[.!?])\s+|\s+and\s+")
MARKS = re.compile(r"^(?:[\s\"'“”‘’*_`•]|-\s)+|[\s\"'“”‘’*_`.,;:!?]+$")
STOP_WORDS = frozenset(
    "a about after all also an and any are as at be been before but by can could did do does for "
    "from had has have he her his how i if in into is it its may more must no not of on one only "
    "or our she should so such than that the their them then there these they this to under until "
    "up was we were what when where which who whom why will with would you your".split()
)
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
        whole = self._exact(answer, question)
        if whole is None:
            return self._in_pieces(answer, question)
        return (self._citation(whole, "exact"),)

    def _in_pieces(self, answer: str, question: str) -> tuple[Citation, ...]:
        quotes = [self._exact(MARKS.sub("", quote), question) for quote in QUOTED.findall(answer)]
        found = [self._citation(place, "exact") for place in quotes if place]
        fuzzy = self._fuzzy(answer, question)
        if fuzzy and not found:
            return (self._citation(fuzzy, "fuzzy"),)
        missing = False
        if not found:
            pieces = [p for p in (MARKS.sub("", p) for p in _pieces(answer)) if p]
            for piece in pieces if len(pieces) > 1 else ():
                if place := self._exact(piece, question):
                    found.append(self._citation(place, "exact"))
                elif place := self._fuzzy(piece, question):
                    found.append(self._citation(place, "fuzzy"))
                else:
                    missing = True
        unique = tuple(dict.fromkeys(found))[:MAX_CITATIONS]
        return unique + (UNSUPPORTED,) * (missing or not unique)

    def _exact(self, words: str, question: str) -> Found | None:
        pattern = _pattern(words)
        if pattern is None:
            return None
        places = [m.span() for m in islice(pattern.finditer(self._text), MAX_PLACES)]
        if len(places) < 2:
            return places[0] if places else None
        asked = _content(question) - _stems(words)
        return max(places, key=lambda place: self._closeness(*self._rows(place), asked))

    def _fuzzy(self, answer: str, question: str) -> Found | None:
        wanted = _content(answer)
        numbers = {w for w in wanted if any(c.isdigit() for c in w)}
        enough = math.ceil(len(wanted) * 2 / 3)
        asked = _content(question) - wanted
        best: tuple[tuple[float, ...], Found] | None = None
        for first, stems in enumerate(self._stems):
            if wanted.isdisjoint(stems):
                continue
            held: set[str] = set()
            for last in range(first, min(first + WINDOW, len(self._stems))):
                if self._document[last] != self._document[first]:
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
        of them (1/2), in the heading above or the document's path (1/4); each word by rarity."""
        here = frozenset().union(*self._stems[first : last + 1])
        document = self._document[first]
        near = range(max(0, first - 2), min(len(self._stems), last + 3))
        around = frozenset().union(*(self._stems[i] for i in near if self._document[i] == document))
        above = self._above(first)
        return sum(
            self._rarity(w) * (1.0 if w in here else 0.5 if w in around else 0.25)
            for w in asked
            if w in here or w in around or w in above
        )

    def _above(self, row: int) -> frozenset[str]:
        path = frozenset(_stems(self._sources[self._parts[self._document[row]].source].path))
        for i in range(row, max(-1, row - 100), -1):
            if self._document[i] != self._document[row]:
                break
            if self._text.startswith("#", self._starts[i]):
                return path | self._stems[i]
        return path

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
        return [frozenset(_stems(line)) for line in self._text.split("\n")]

    @cached_property
    def _frequency(self) -> Counter[str]:
        return Counter(stem for stems in self._stems for stem in stems)

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
    """Words in a row, wherever lines break between them, never from within a word."""
    pieces = [re.sub(r"[*_`]+", "", word) for word in words.split()]
    pieces = [piece for piece in pieces if piece]
    if not pieces:
        return None
    body = SEPARATOR.join("".join(VARIANTS.get(c, re.escape(c)) for c in piece) for piece in pieces)
    before = r"(?<!\w)" if pieces[0][0].isalnum() else ""
    after = r"(?!\w)" if pieces[-1][-1].isalnum() else ""
    return re.compile(before + body + after, re.IGNORECASE)


def _pieces(answer: str) -> Iterator[str]:
    """Items of a list, sentences, or the values of a JSON answer."""
    if answer[:1] in "{[":
        try:
            yield from _leaves(json.loads(answer))
            return
        except ValueError:
            pass  # text that begins like JSON
    yield from ITEMS.split(answer)


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def _content(text: str) -> set[str]:
    """Stems that carry meaning; all of them when none does."""
    words = WORD.findall(text.casefold())
    return {_stem(w) for w in words if w not in STOP_WORDS} or {_stem(w) for w in words}


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in WORD.findall(text.casefold())}


def _stem(word: str) -> str:
    """Crude, on purpose the same for question, answer and document: plural and tense go."""
    word = word.replace("’", "'").removesuffix("'s")
    if not word.isalpha():
        return word
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    if len(word) > 3:
        word = word.removesuffix("e")
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word
