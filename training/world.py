"""Phrases of one invented document: noun phrases, places, times, reasons, conditions and actions.

A world draws its modifiers and nouns from a small pool chosen once per document, so that many phrases of one document
share words ("the spare key", "the spare wheel", "the archive key"): near misses come by themselves.
"""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

import random
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from training.amounts import MONTHS, NUMBERS, ORDINALS, WEEKDAYS
from training.bank import Bank
from training.templates import plural
from training.values import WORDS, Values, is_held_out


class Phrase(NamedTuple):
    """A phrase as it stands in the text, and the piece of it that answers a question."""

    text: str
    answer: str


@lru_cache
def phrase_lines(file: str) -> tuple[str, ...]:
    """The lines of a word file that are no comments."""
    lines = (WORDS / file).read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


class World:
    """One document's stock of phrases."""

    def __init__(self, rng: random.Random, bank: Bank, held_out: bool = False) -> None:
        self.rng = rng
        self.bank = bank
        self.held_out = held_out
        self.values = Values(rng, held_out)
        self.nouns = self.values.nouns
        self.mods = [self._mod() for _ in range(rng.randrange(4, 12))]
        self.pools: dict[str, list[str]] = {}
        self.used: set[str] = set()
        self.rate = 0.0 if held_out else rng.choice((0.0, 0.1, 0.2, 0.3))
        """how often a word gives way to a synonym; the evaluation asks in the words as written"""
        self.renamed = 0.0 if held_out else rng.choice((0.0, 0.4, 0.9, 1.0))
        """how often the words of a passage give way to others"""
        self.room = 2_000
        """characters left until the document has its length"""
        self.numbered = rng.random() < 0.3
        """whether conversations and the like bear numbers, so that a document may hold several"""
        self._phrases: dict[str, Callable[[], str]] = {
            name[3:]: getattr(self, name) for name in dir(self) if name.startswith("np_")
        }

    def _mod(self) -> str:
        roll = self.rng.random()
        if roll < 0.12:
            return self.values.stem()
        if roll < 0.22:
            return f"{self.rng.choice(self.nouns['mod'])}-{self.rng.choice(self.nouns['thing'])}".replace(" ", "-")
        if roll < 0.3:
            return self.rng.choice(self.nouns["season" if roll < 0.23 else "mass"])
        return self.rng.choice(self.nouns["mod"])

    def noun(self, name: str) -> str:
        """A noun of a class, from this document's pool."""
        pool = self.pools.get(name)
        if pool is None:
            words = self.nouns[name]
            pool = [self.rng.choice(words) for _ in range(self.rng.randrange(3, 14))]
            if name in ("thing", "doc", "room", "activity") and self.rng.random() < 0.3:
                pool += [self.values.stem() for _ in range(2)]
            self.pools[name] = pool
        return pool[int(self.rng.random() * len(pool))]

    def np(self, name: str, mod: float = 0.75) -> str:
        """A noun phrase without article, on this world's side of the split."""
        for _ in range(30):
            noun = self.noun(name)
            roll = self.rng.random()
            if roll < mod:
                pick = self.mods[int(self.rng.random() * len(self.mods))]
                noun = noun if pick in noun else f"{pick} {noun}"
            elif roll > 0.93:
                noun = f"{noun} {self.rng.choice(('in the', 'for the', 'from the', 'of the'))} {self.noun('room')}"
            if is_held_out(noun) == self.held_out:
                return noun
        return noun

    def fresh(self, name: str) -> str:
        """A noun phrase not yet used in this document."""
        for _ in range(20):
            phrase = self.draw(name)
            if phrase not in self.used:
                break
        self.used.add(phrase)
        return phrase

    def short(self, phrase: str) -> str:
        """The head noun alone, as people say when only one thing of the document can be meant."""
        head = phrase.rsplit(" ", 1)[-1]
        if head == phrase or " the " in phrase:
            return phrase
        return phrase if sum(used.endswith(head) for used in self.used) > 1 else head

    def distinct(self, kind: str) -> str:
        """A phrase whose head noun nothing in this document bears."""
        for _ in range(12):
            phrase = self.fresh(kind)
            head = phrase.rsplit(" ", 1)[-1]
            if " " in phrase or sum(used.endswith(head) for used in self.used) < 2:
                break
        return phrase

    def subject(self, kind: str) -> str:
        """The subject of a fact: a name, or at times a plain definite noun phrase ("the rowing club")."""
        rng = self.rng
        if rng.random() < 0.35:
            if kind == "product":
                return self.fresh("thing")
            if kind == "event":
                return self.fresh("activity")
            if kind == "place":
                return f"the {self.fresh('room')}"
            if kind == "org":
                mod = f"{rng.choice(self.mods)} " if rng.random() < 0.3 else ""
                return f"the {mod}{self.values.pick('institution')}"
        return self.fresh(kind)

    def draw(self, kind: str) -> str:
        """A value or a phrase of a type."""
        maker = self._phrases.get(kind)
        return maker() if maker else self.values.draw(kind)

    def types(self) -> frozenset[str]:
        """Every type that `draw` knows."""
        return self.values.types() | frozenset(self._phrases)

    # Phrase types of the schemas (the name after np_).

    def np_thing(self) -> str:
        return self.np("thing")

    def np_things(self) -> str:
        return self.np("things", 0.6)

    def np_doc(self) -> str:
        return self.np("doc")

    def np_room(self) -> str:
        return self.np("room", 0.35)

    def np_group(self) -> str:
        return self.np("group", 0.25)

    def np_job(self) -> str:
        return self.np("role", 0.15)

    def np_activity(self) -> str:
        return self.np("activity", 0.5)

    def np_mass(self) -> str:
        return self.np("mass", 0.1)

    def np_bad(self) -> str:
        return self.rng.choice(self.nouns["bad"])

    def np_season(self) -> str:
        return self.rng.choice(self.nouns["season"])

    def np_adj(self) -> str:
        return self.rng.choice(self.nouns["adj"])

    def np_container(self) -> str:
        return self.np("container", 0.6)

    def np_where(self) -> str:
        """in the blue cabinet / behind the boat house / on the second floor ..."""
        rng = self.rng
        form = int(rng.random() * 10)
        if form <= 2:
            return f"in the {self.np_container()}"
        if form == 3:
            return f"on the {self.np('surface', 0.4)}"
        if form == 4:
            return f"{rng.choice(('next to', 'behind', 'under', 'opposite', 'beside', 'above', 'in front of'))} the {self.np_thing()}"
        if form == 5:
            return f"on the {rng.choice(ORDINALS[:9])} floor"
        if form <= 7:
            return f"{rng.choice(('in', 'in', 'behind', 'outside', 'at', 'opposite', 'near'))} the {self.np_room()}"
        if form == 8:
            return f"in a {self.values.pick('colour')} {self.noun('container')} {rng.choice(('behind', 'in', 'under'))} the {self.np_room()}"
        return f"with the {self.np_job()}"

    def np_freq(self) -> str:
        rng = self.rng
        form = int(rng.random() * 10)
        if form == 0:
            return f"every {rng.choice(WEEKDAYS)}"
        if form == 1:
            return f"{rng.choice(('once', 'twice', 'three times', 'four times'))} a {rng.choice(('day', 'week', 'month', 'year'))}"
        if form == 2:
            return f"every {rng.choice(('second', 'third', 'other'))} {rng.choice((*WEEKDAYS, 'day', 'week', 'month', 'year'))}"
        if form == 3:
            return f"every {NUMBERS[rng.randrange(2, 13)]} {rng.choice(('hours', 'days', 'weeks', 'months', 'years', 'minutes'))}"
        if form == 4:
            return f"on the {rng.choice((*ORDINALS[:4], 'last'))} {rng.choice(WEEKDAYS)} of {rng.choice(('each', 'every', 'the'))} month"
        if form == 5:
            return f"after {rng.choice(('every', 'each'))} {self.np_activity()}"
        if form == 6:
            return rng.choice(("daily", "weekly", "monthly", "every night", "every morning", "hourly", "quarterly", "once a fortnight"))
        if form == 7:
            return f"every {self.values.draw('duration')}"
        if form == 8:
            return f"at the {rng.choice(('end', 'start', 'beginning'))} of {rng.choice(('every', 'each'))} {rng.choice(('month', 'quarter', 'term', 'shift', 'week'))}"
        return f"each {rng.choice((*MONTHS, 'spring', 'autumn', 'winter', 'summer'))}"

    def np_when(self) -> str:
        """A time phrase that is no plain value: its answer is the whole phrase."""
        rng = self.rng
        form = int(rng.random() * 5)
        if form == 0:
            return f"{rng.choice(('before', 'after', 'during'))} the {self.np_activity()}"
        if form == 1:
            return f"on {rng.choice(WEEKDAYS)} {rng.choice(('morning', 'afternoon', 'evening'))}"
        if form == 2:
            return f"in the {rng.choice(('first', 'second', 'last'))} week of {rng.choice(MONTHS)}"
        if form == 3:
            return f"{self.values.draw('duration')} {rng.choice(('before', 'after'))} the {self.np_activity()}"
        return rng.choice(("at weekends", "in the early morning", "late in the evening", "at night", "at the end of the month",
                           "on public holidays", "before lunch", "during the lunch break", "at low tide", "after dark"))

    def np_deadline_phrase(self) -> str:
        """by Friday / no later than 3 March ..."""
        return self.deadline().text

    def np_reason(self) -> str:
        """because ... / to avoid ... / so that ... (the whole phrase)"""
        rng = self.rng
        form = int(rng.random() * 7)
        if form == 0:
            return f"to {rng.choice(('avoid', 'prevent', 'protect it from', 'keep out'))} {self.np_bad()}"
        if form == 1:
            return f"because of {self.np_bad()}"
        if form == 2:
            return f"so that the {self.np_thing()} stays {self.np_adj()}"
        if form == 3:
            return f"because the {self.np_thing()} is {rng.choice(('often', 'rarely', 'no longer', 'always', 'sometimes'))} {self.np_adj()}"
        if form == 4:
            return f"because {self.np_group()} need the {self.np_thing()} {self.np_when()}"
        if form == 5:
            return f"to make room for the {self.np_things()}"
        return f"because the {self.np_room()} is {self.np_adj()} {self.np_when()}"

    def np_cond(self) -> str:
        """if ... / when ... / unless ... (the whole phrase)"""
        rng = self.rng
        form = int(rng.random() * 7)
        if form == 0:
            return f"{rng.choice(('if', 'when', 'unless', 'as long as'))} the {self.np_room()} is {self.np_adj()}"
        if form == 1:
            return f"{rng.choice(('if', 'unless', 'once'))} the {self.np_job()} {rng.choice(('agrees', 'objects', 'is present', 'has signed', 'says so'))}"
        if form == 2:
            return f"with the {rng.choice(('permission', 'consent', 'approval', 'help'))} of the {self.np_job()}"
        if form == 3:
            return f"in case of {self.np_bad()}"
        if form == 4:
            return f"{rng.choice(('if', 'when'))} {self.condition()[0]}"
        if form == 5:
            return f"when accompanied by a {self.np_job()}"
        return f"during {rng.choice(self.nouns['season'])}"

    def fill(self, line: str) -> str:
        """Fill the `{type}` places of a word-file line."""
        while "{" in line:
            head, _, rest = line.partition("{")
            kind, _, tail = rest.partition("}")
            line = head + self._place(kind) + tail
        return line

    def _place(self, kind: str) -> str:
        if kind in ("seconds", "minutes", "spoons"):
            return str(self.rng.randrange(2, 60))
        if kind in ("thing", "things", "doc", "room", "container"):
            return self.np(kind, 0.4)
        if kind in ("role", "mass", "activity"):
            return self.np(kind, 0.2)
        return self.rng.choice(self.mods) if kind == "mod" else self.values.draw(kind)

    def np_action(self) -> str:
        """call the warden / put the key in the blue box ..."""
        lines = phrase_lines("actions.txt")
        action = self.fill(lines[int(self.rng.random() * len(lines))])
        if self.rng.random() < 0.2:
            action += f" and {self.fill(lines[int(self.rng.random() * len(lines))])}"
        return action

    def condition(self) -> tuple[str, str]:
        """A condition, and the same as something that happened to me."""
        lines = phrase_lines("conditions.txt")
        line = lines[int(self.rng.random() * len(lines))]
        filled = self._fill_pair(line)
        general, _, mine = filled.partition("|")
        return general.strip(), mine.strip()

    def _fill_pair(self, line: str) -> str:
        """Fill both halves of a line with the same phrases."""
        for kind in ("thing", "things", "doc", "room", "container", "role", "mass", "activity", "colour", "mod", "person"):
            mark = "{" + kind + "}"
            if mark in line:
                line = line.replace(mark, self._place(kind))
        return line

    def when(self) -> Phrase:
        """A point in time; plain values answer without their preposition."""
        rng = self.rng
        form = int(rng.random() * 6)
        if form == 0:
            day = rng.choice(WEEKDAYS)
            return Phrase(f"on {day}", day)
        if form == 1:
            time = self.values.draw("time")
            return Phrase(f"at {time}", time)
        if form == 2:
            date = self.values.draw("date")
            return Phrase(f"on {date}", date)
        if form == 3:
            month = rng.choice(MONTHS)
            return Phrase(f"in {month}", month)
        phrase = self.np_when()
        return Phrase(phrase, phrase)

    def deadline(self) -> Phrase:
        """A last moment; plain values answer without their preposition."""
        kind = self.rng.choice(("weekday", "time", "date", "date", "month"))
        value = self.values.draw(kind)
        lead = self.rng.choice(("by", "before", "no later than", "until", "by"))
        if kind == "month":
            lead = "by the end of"
            return Phrase(f"{lead} {value}", f"the end of {value}")
        return Phrase(f"{lead} {value}", value)

    def plural_of(self, noun: str) -> str:
        """The plural of a noun phrase."""
        return plural(noun)
