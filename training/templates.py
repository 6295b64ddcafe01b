"""Templates with slots, interchangeable words and interchangeable nouns.

`compile_template` cuts a line of the bank into parts once; `Template.render` only walks over
them, since millions of sentences are rendered. `Choice` parts are synonyms drawn anew at every
rendering, so that a statement and a question share only some of their words. `Noun` parts are
replaced by the same other noun in every template of one instance ("pump repair" becomes "lantern
repair"), so that no topic can be learnt by heart.
"""

import random
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from training.values import word_classes

HELD_OUT_PERCENT = 7
"""Share of the phrasings that only the evaluation uses."""
_TOKEN = re.compile(r"\{(\w+)\}")
_VOWEL = re.compile(r"(?i)(?!uni|use|usu|eu|one\b|once)[aeiou]")
_TWICE = re.compile(r"\b([Tt]he) [Tt]he ")
_A_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=(?!uni|use|usu|eu|one\b|once|Uni|Eu|Use)[aeiouAEIO])")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a value; `first` when it begins a sentence inside the text."""

    name: str
    first: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """Words that may stand for one another; the first is the one written in the bank."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun that may be replaced consistently in a whole instance."""

    base: str
    plural: bool


Part = str | Slot | Choice | Noun


@dataclass(frozen=True, slots=True)
class Synonyms:
    """Groups of interchangeable expressions: expression -> all of its group."""

    groups: Mapping[str, tuple[str, ...]]
    pattern: re.Pattern[str] | None


@dataclass(frozen=True, slots=True)
class Template:
    """One phrasing, ready to render."""

    source: str
    parts: tuple[Part, ...]
    slots: frozenset[str]
    held_out: bool

    def render(
        self,
        values: Mapping[str, str],
        rng: random.Random,
        rate: float = 0.0,
        nouns: Mapping[str, str] | None = None,
    ) -> str:
        """The text with values filled in; synonyms are drawn with probability `rate` at each
        place.
        """
        out: list[str] = []
        for part in self.parts:
            if type(part) is str:
                out.append(part)
            elif type(part) is Slot:
                value = values[part.name]
                out.append(capital(value) if part.first else value)
            elif type(part) is Choice:
                options = part.options
                pick = int(rng.random() * len(options)) if rng.random() < rate else 0
                out.append(options[pick])
            elif type(part) is Noun:
                base = nouns.get(part.base, part.base) if nouns else part.base
                out.append(plural(base) if part.plural else base)
        return capital("".join(out))


def capital(text: str) -> str:
    """Upper-case the first letter, unless the text starts with an address or a code."""
    first = text[:40].split(" ", 1)[0]
    if (
        first[:1].islower()
        and "@" not in first
        and "." not in first[:-1]
        and not any(map(str.isdigit, first))
    ):
        return text[0].upper() + text[1:]
    return text


def articles(text: str) -> str:
    """Turn `a` into `an` before a vowel, and `the the` into `the`."""
    return _A_BEFORE_VOWEL.sub(r"\1n ", _TWICE.sub(r"\1 ", text))


def is_held_out_template(source: str) -> bool:
    """Whether a phrasing belongs to the evaluation; depends on its text alone."""
    return zlib.crc32(source.encode()) % 100 < HELD_OUT_PERCENT


@cache
def plural(noun: str) -> str:
    """The regular English plural of a noun (the last word of a compound)."""
    if noun.endswith(("s", "sh", "ch", "x", "z")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith("fe"):
        return noun[:-2] + "ves"
    if noun.endswith(("shelf", "scarf", "loaf")):
        return noun[:-1] + "ves"
    return noun + "s"


@lru_cache
def swappable_nouns() -> Mapping[str, tuple[str, bool]]:
    """Single-word nouns of the word lists: written form -> (base form, whether plural)."""
    forms: dict[str, tuple[str, bool]] = {}
    for name in ("thing", "doc", "room", "activity"):
        for noun in word_classes("nouns.txt")[name]:
            if " " not in noun and noun not in {
                "safe",
                "watch",
                "plan",
                "order",
                "bill",
                "fan",
                "test",
                "review",
                "match",
                "course",
                "pass",
                "light",
                "plane",
                "lock",
                "book",
                "shop",
                "bar",
                "box",
                "key",
                "set",
                "race",
                "launch",
                "quote",
                "claim",
            }:
                forms[noun] = (noun, False)
                forms[plural(noun)] = (noun, True)
    return forms


_MISLEADING = frozenset(
    {
        "many",
        "until",
        "have to",
        "need",
        "get",
        "only",
        "free",
        "money",
        "takes",
        "last",
        "go",
        "room",
        "way",
        "number",
    }
)
"""Words whose synonyms of the bank seldom fit inside questions."""


def make_synonyms(lines: list[list[str]]) -> Synonyms:
    """Index groups of expressions by each of their members."""
    groups: dict[str, tuple[str, ...]] = {}
    for words in lines:
        if _MISLEADING & set(words):
            continue
        for word in words:
            groups.setdefault(word, tuple(dict.fromkeys([word, *words])))
    if not groups:
        return Synonyms({}, None)
    ordered = sorted(groups, key=len, reverse=True)
    return Synonyms(groups, re.compile(r"\b(?:" + "|".join(map(re.escape, ordered)) + r")\b"))


def _choice(text: str, start: int, group: tuple[str, ...]) -> Part:
    """The synonyms that fit at a place: after `a` or `an` only those with the same kind of first
    letter.
    """
    before = text[:start].rsplit(None, 1)
    if before and before[-1].lower() in ("a", "an"):
        vowel = bool(_VOWEL.match(group[0]))
        group = tuple(word for word in group if bool(_VOWEL.match(word)) == vowel)
    return Choice(group) if len(group) > 1 else group[0]


def _split_literal(text: str, synonyms: Synonyms, at_start: bool) -> list[Part]:
    """Cut a stretch without slots into literals, choices and nouns."""
    parts: list[Part] = []
    last = 0
    lowered = text[0].lower() + text[1:] if at_start and text else text
    pattern = synonyms.pattern
    for match in pattern.finditer(lowered) if pattern else ():
        parts += _split_nouns(lowered[last : match.start()])
        parts.append(_choice(lowered, match.start(), synonyms.groups[match.group()]))
        last = match.end()
    parts += _split_nouns(lowered[last:])
    return parts


def _split_nouns(text: str) -> list[Part]:
    forms = swappable_nouns()
    parts: list[Part] = []
    for piece in re.split(r"(\b[a-z]+\b)", text):
        if piece in forms:
            parts.append(Noun(*forms[piece]))
        elif parts and isinstance(parts[-1], str):
            parts[-1] += piece
        elif piece:
            parts.append(piece)
    return parts


def compile_template(source: str, synonyms: Synonyms) -> Template:
    """Cut one phrasing into parts."""
    parts: list[Part] = []
    last = 0
    names: list[str] = []
    for match in _TOKEN.finditer(source):
        if match.start() > last:
            parts += _split_literal(source[last : match.start()], synonyms, last == 0)
        parts.append(
            Slot(match.group(1), source[: match.start()].endswith((". ", "! ", "? ", "\n", "- ")))
        )
        names.append(match.group(1))
        last = match.end()
    if last < len(source):
        parts += _split_literal(source[last:], synonyms, last == 0)
    return Template(source, tuple(parts), frozenset(names), is_held_out_template(source))
