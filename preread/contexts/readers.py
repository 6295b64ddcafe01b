"""Text out of file formats, line by line: every reader returns lines with the line of the file
each one stands on, so that a citation names the file and not our rendering of it."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import NamedTuple

Lines = list[tuple[str, int]]  # (text, line of the file from 1)

HIDDEN = frozenset({"script", "style", "template", "noscript", "svg"})
PARAGRAPHS = frozenset(
    "address article aside blockquote body details div dl fieldset figure footer form h1 h2 h3 h4 "
    "h5 h6 head header hr main nav ol p pre section table title ul".split()
)
BREAKS = frozenset("br caption dd dt figcaption li option summary tr".split())
OPENING = {"li": "- ", "title": "# ", **{f"h{n}": "#" * n + " " for n in range(1, 7)}}
MARKS = frozenset(mark.strip() for mark in OPENING.values())
HEADS = frozenset(OPENING.values()) - {"- "}
CELLS = frozenset({"td", "th"})
RESCANNED = 1 << 23  # characters looked through in vain for the ends of markup

# Looser than either standard: a cue whose times are odd is still spoken.
TIME = r"(?:\d+:){1,2}\d+(?:[.,]\d*)?"
TIMING = re.compile(rf"\s*({TIME})\s*-->(?:\s*({TIME}))?")
VOICE = re.compile(r"<v(?:\.[^\s<>]*)?\s+([^<>]*)>")
# Tags of WebVTT and SubRip and the times of karaoke; "x < 5 and y > 3" and <ann@x.org> are words.
TAG = re.compile(
    r"</?(?:b|c|font|i|lang|rt|ruby|s|u|v)(?:[.\s][^<>]*)?>|<[\d:]+\.\d+>", re.IGNORECASE
)
LINE_REFERENCE = re.compile(r"&(?:#0*1[03]|#x0*[ad]|newline)(?:;|(?![\da-z]))", re.IGNORECASE)


def read_html(text: str) -> Lines:
    """The visible text; headings, list items and table cells keep their marks."""
    page = _Page()
    page.feed(LINE_REFERENCE.sub(" ", text))  # only line ends of the file count as lines
    page.pass_unended()
    page.close()
    page.flush()
    return page.lines


class _Page(HTMLParser):
    """One output line at a time: `_line` collects pieces, `_at` is where its first words stand."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: Lines = []
        self._line: list[str] = []
        self._at = 1
        self._hidden = 0
        self._pre = False
        self._gap = False  # a paragraph ended: a blank line goes before the next one
        self._newline = False  # the file's line ended: so does ours if words follow

    def pass_unended(self) -> None:
        """Read on after markup that never ends ("<a <a", an open comment): it is text as far as the
        next bracket. The parser looks for the end of each to the end of the page, so when that has
        been too much, all the rest is text."""
        left = RESCANNED
        while (rest := self.rawdata).startswith("<"):
            left -= len(rest)
            end = rest.find(">") + 1 or rest.find("<", 1) if left > 0 else -1
            end = end if end > 0 else len(rest)
            self.handle_data(html.unescape(rest[:end]))
            self.updatepos(0, end)
            self.rawdata = rest[end:]
            self.feed("")

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """`<![if !IE]>` and the like are comments; the parser's own stops at unknown ones."""
        return self.parse_bogus_comment(i, report)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in HIDDEN:
            self._hidden += 1
        elif tag in CELLS and self._visible():
            self._line.append(" | ")
            self._newline = False
        elif (tag in PARAGRAPHS or tag in BREAKS) and not self._marked():
            self._end(paragraph=tag in PARAGRAPHS)
        if tag in OPENING and not self._marked():
            self._line.append(OPENING[tag])
        self._pre |= tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in HIDDEN:
            self._hidden = max(0, self._hidden - 1)
        elif tag in PARAGRAPHS or tag in BREAKS:
            self._end(paragraph=tag in PARAGRAPHS)
        self._pre &= tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        first = self.getpos()[0]
        for i, piece in enumerate(data.split("\n")):
            self._newline |= i > 0 and self._visible()
            if not piece.strip():
                if self._line or self._pre:
                    self._line.append(piece)
                continue
            if self._newline and not self._heading():
                self.flush()
            if not self._visible():
                self._at = first + i
            self._line.append(f" {piece}" if self._heading() else piece)

    def _marked(self) -> bool:
        """Whether the line holds an opening mark and nothing else yet."""
        return self._begin() in MARKS

    def _visible(self) -> bool:
        return self._begin() not in {"", *MARKS}

    def _begin(self) -> str:
        """The line so far, or no more of it than tells words from a mark (lines may be long)."""
        begin = ""
        for piece in self._line:
            begin = (begin + piece).lstrip()
            if not any(mark.startswith(begin.rstrip()) for mark in MARKS):
                break
        return begin.rstrip()

    def _heading(self) -> bool:
        return bool(self._line) and self._line[0] in HEADS

    def _end(self, paragraph: bool) -> None:
        if not self._visible():
            self._line.clear()
        self.flush()
        self._gap |= paragraph

    def flush(self) -> None:
        """End the line."""
        text = "".join(self._line)
        self._line.clear()
        self._newline = False
        text = text.rstrip() if self._pre else " ".join(text.split())
        if not text.strip():
            return
        if self._gap and self.lines:
            self.lines.append(("", self._at))
        self._gap = False
        self.lines.append((text, self._at))


def read_cues(text: str) -> Lines:
    """The spoken lines of WebVTT, as "Speaker: text" where a voice is marked.

    Cue numbers, timings, settings and NOTE, STYLE and REGION blocks go. A line equal to the last
    one of a cue that touches or overlaps this one goes too: rolling captions say each line two or
    three times. Only whole lines are compared, since people repeat words.
    """
    return _spoken([(line, at) for at, line in enumerate(text.split("\n"), 1)])


def read_subrip(text: str) -> Lines:
    """The same for SubRip, where a cue ends at the next number and timing: blank lines say nothing,
    players show what stands behind them."""
    return _spoken([(line, at) for at, line in enumerate(text.split("\n"), 1) if line.strip()])


def _spoken(lines: Lines) -> Lines:
    kept: Lines = []
    spoken = False  # within a cue's payload
    cue = said = _Cue(0, 0.0, 0.0)  # the one that is read, the last one that said kept[-1]
    for (line, number), (after, _) in pairwise([*lines, ("", 0)]):
        if line.strip().isdigit() and TIMING.match(after):
            spoken = False  # the number of the next cue, with no blank line before it
        elif not line.strip():
            # A padding line (" ") inside a cue does not end it; only an empty one does.
            spoken = spoken and line != ""
        elif timing := TIMING.match(line):
            spoken = True
            cue = _Cue(number, _seconds(timing[1]), _seconds(timing[2] or timing[1]))
        elif spoken:
            for words in _voices(line):
                if not (cue.rolls_on(said) and kept[-1][0] == words):
                    kept.append((words, number))
                said = cue
    return kept


class _Cue(NamedTuple):
    """Line of its timing; times in seconds."""

    line: int
    start: float
    end: float

    def rolls_on(self, before: _Cue) -> bool:
        """Whether it may say again what an earlier cue said."""
        touch = self.start <= before.end and before.start <= self.end
        return 0 < before.line < self.line and touch


def _seconds(time: str) -> float:
    parts = reversed(time.replace(",", ".").split(":"))
    return sum(float(part) * 60.0**power for power, part in enumerate(parts))


def _voices(line: str) -> list[str]:
    """A payload line as one string per voice: `<v Ann>Hi <v Bob>Yes` has two."""
    pieces = VOICE.split(line)
    spans = [("", pieces[0]), *zip(pieces[1::2], pieces[2::2], strict=True)]
    found = []
    for voice, words in spans:
        said = " ".join(html.unescape(TAG.sub("", words)).split())
        who = html.unescape(voice).strip()
        if said:
            found.append(f"{who}: {said}" if who else said)
    return found
