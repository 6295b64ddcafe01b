"""Words of a passage exchanged for others, the same way in its questions.

A model that has seen a passage a thousand times knows its answers by the words; once "The sheep are
shorn by …" reads "The lids are gorven by …", and the question "Who gorves the lids?", only
looking for those words helps.
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from training.skills.overlap import STOP

_WORD = re.compile(r"(?<![\w@.'’/-])[A-Z]?[a-z]{3,}(?![\w@'’-]|\.\w)")
_SUFFIXES = ("ing", "ed", "es", "s", "d", "")
_KEPT = frozenset(
    """many much long often time times when where what which who whom whose far old high heavy soon
    late name kind sort part most least more less first last next half hour hours day days week
    weeks month months year years minute minutes second seconds second third fourth fifth pounds
    euros crowns pence cent per metres grams litres monday tuesday wednesday thursday friday
    saturday sunday january february march april june july august september october november
    december spring summer autumn winter morning evening night noon midnight eleven twelve two
    three four five six seven eight nine ten twenty thirty forty fifty hundred thousand person
    people place number amount price cost costs reason colour weight length street never always
    sometimes usually instead except unless otherwise however since within without""".split()
)


@lru_cache(100_000)
def stem(word: str) -> tuple[str, str]:
    """(stem, suffix) of a word, roughly."""
    lower = word.lower()
    for suffix in _SUFFIXES:
        if lower.endswith(suffix) and len(lower) - len(suffix) >= 4:
            return lower[: len(lower) - len(suffix)], suffix
    return lower, ""


def content_words(text: str) -> list[str]:
    """The words of a text that may be exchanged, in lower case."""
    found = (word.lower() for word in _WORD.findall(text))
    return [word for word in found if word not in STOP and word not in _KEPT]


def stems(text: str) -> set[str]:
    """Stems of the words of a text that may be exchanged."""
    return {stem(word)[0] for word in content_words(text)}


@dataclass(frozen=True, slots=True)
class Renaming:
    """stem -> stem; applied to a passage, its questions and its answers alike."""

    words: dict[str, str]

    def __call__(self, text: str) -> str:
        """The text with its words exchanged, suffixes and capitals kept."""
        return _WORD.sub(self._one, text) if self.words else text

    def _one(self, match: re.Match[str]) -> str:
        word = match.group()
        base, suffix = stem(word)
        new = self.words.get(base)
        if new is None or word.lower() in STOP or word.lower() in _KEPT:
            return word
        new = new[:-1] if suffix in ("ing", "ed", "es") and new.endswith("e") else new
        made = new + suffix
        return made.capitalize() if word[0].isupper() else made

    def breaks(self, passage: str, question: str) -> bool:
        """Whether the exchange took the words away by which a question was tied to a passage
        (both before the exchange).
        """
        own = stems(passage)
        if not self.words.keys() & own:
            return False
        return not stems(question) & own


NONE = Renaming({})


def draw(
    texts: Iterable[str],
    passage: str,
    rng: random.Random,
    invent: Callable[[], str],
    words: tuple[str, ...],
) -> Renaming:
    """Exchange some, most or all words of a passage that its questions (`texts`) use, too, and a
    share of its others; half of the new words are invented, half are words of other passages.
    """
    own = sorted(stems(passage))
    asked = set().union(*(stems(text) for text in texts))
    shared = [word for word in own if word in asked]
    if not shared:
        return NONE
    chosen = rng.sample(shared, max(1, round(len(shared) * rng.uniform(0.2, 1.0))))
    others = rng.choice((0.0, 0.2, 0.5))
    chosen += [word for word in own if word not in asked and rng.random() < others]
    taken = set(own)
    made: dict[str, str] = {}
    for word in chosen:
        new = rng.choice(words) if words and rng.random() < 0.5 else invent().lower()
        if new not in taken:
            taken.add(new)
            made[word] = new
    return Renaming(made)
