"""English verb forms for the words of words/verbs.txt."""

from functools import cache, lru_cache
from typing import NamedTuple

from training.world import phrase_lines


class Forms(NamedTuple):
    """base, third person, past, participle, -ing; `tail` is the particle after the verb."""

    base: str
    third: str
    past: str
    participle: str
    ing: str


class VerbGroup(NamedTuple):
    """Verbs that mean the same with one class of objects."""

    objects: str
    verbs: tuple[Forms, ...]


@lru_cache
def _irregular() -> dict[str, tuple[str, str]]:
    rows = (line.split() for line in phrase_lines("irregular.txt"))
    return {row[0]: (row[1], row[2]) for row in rows}


def _third(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


def _past(verb: str) -> str:
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + "ed"


_DOUBLED = {
    "run",
    "set",
    "put",
    "shut",
    "let",
    "begin",
    "swap",
    "plan",
    "fit",
    "wrap",
    "unwrap",
    "ship",
    "stop",
    "skip",
    "drop",
    "get",
    "mop",
    "unplug",
    "transfer",
    "refer",
    "win",
    "cut",
}


def _ing(verb: str) -> str:
    if verb in _DOUBLED:
        return verb + verb[-1] + "ing"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return verb[:-1] + "ing"
    return verb + "ing"


@cache
def inflect(verb: str) -> Forms:
    """All forms of a base form such as `pick up`; only its first word changes."""
    head, space, tail = verb.partition(" ")
    past, participle = _irregular().get(head, (_past(head), _past(head)))
    rest = space + tail
    return Forms(verb, _third(head) + rest, past + rest, participle + rest, _ing(head) + rest)


@lru_cache
def verb_groups() -> tuple[VerbGroup, ...]:
    """Every group of words/verbs.txt."""
    groups = []
    for line in phrase_lines("verbs.txt"):
        objects, _, words = line.partition("]")
        groups.append(
            VerbGroup(objects.strip("[ "), tuple(inflect(w.strip()) for w in words.split(",")))
        )
    return tuple(groups)
