"""Seeded random values of every type of the bank, split into training and held-out values.

A value is held out when the hash of its text says so. Training draws again until a value is not
held out, evaluation until it is, so no random name, code or amount of the evaluation was trained on.
"""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

import random
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from training.amounts import AMOUNTS

WORDS = Path(__file__).parent / "words"
HELD_OUT_SHARE = 16
"""One value in so many is held out."""
CLOSED = frozenset({"weekday", "month", "year", "colour", "country", "language", "department"})
"""Types with too few values to hold some out."""


def is_held_out(value: str) -> bool:
    """Whether a value belongs to the evaluation; depends on the text alone."""
    return zlib.crc32(value.lower().encode()) % HELD_OUT_SHARE == 0


@lru_cache
def word_classes(file: str) -> Mapping[str, tuple[str, ...]]:
    """Read a word file: class name -> words."""
    classes: dict[str, list[str]] = {}
    current: list[str] = []
    for line in (WORDS / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line.startswith("["):
            current = classes.setdefault(line.strip("[] \t"), [])
        else:
            current += [word.strip() for word in line.rstrip(",").split(",")]
    return {name: tuple(words) for name, words in classes.items()}


class Values:
    """Draws values by type. `held_out` chooses the side of the split."""

    def __init__(self, rng: random.Random, held_out: bool = False) -> None:
        self.rng = rng
        self.held_out = held_out
        self.names = word_classes("names.txt")
        self.nouns = word_classes("nouns.txt")
        self._makers: dict[str, Callable[[], str]] = {
            name[5:]: getattr(self, name) for name in dir(self) if name.startswith("make_")
        }
        for name, maker in AMOUNTS.items():
            self._makers[name] = lambda maker=maker: maker(self.rng)  # type: ignore[misc]

    def types(self) -> frozenset[str]:
        """Every type that `draw` knows."""
        return frozenset(self._makers)

    def draw(self, kind: str) -> str:
        """A random value of a type on this side of the split."""
        maker = self._makers[kind]
        value = maker()
        if kind in CLOSED:
            return value
        for _ in range(200):
            if is_held_out(value) == self.held_out:
                return value
            value = maker()
        return value

    def pick(self, name: str) -> str:
        """A random word of a class in names.txt."""
        words = self.names[name]
        return words[int(self.rng.random() * len(words))]

    def stem(self, syllables: int = 0) -> str:
        """An invented word in lower case."""
        count = syllables or (1 if self.rng.random() < 0.25 else 2)
        parts = [self.pick("onset") + self.pick("nucleus") for _ in range(count)]
        return "".join(parts) + self.pick("coda")

    def _surname(self) -> str:
        return self.pick("surname") if self.rng.random() < 0.4 else self.stem().capitalize()

    def make_first_name(self) -> str:
        if self.rng.random() < 0.15:
            return self.stem().capitalize()
        return self.pick("first_f" if self.rng.random() < 0.5 else "first_m")

    def make_person(self) -> str:
        surname = self._surname()
        roll = self.rng.random()
        if roll < 0.04:
            return f"{self.rng.choice(('Dr', 'Ms', 'Mr', 'Mrs', 'Professor'))} {surname}"
        if roll < 0.07:
            surname = f"{surname}-{self._surname()}"
        elif roll < 0.09:
            surname = f"{self.rng.choice(('de', 'van', 'von', 'al'))} {surname}"
        return f"{self.make_first_name()} {surname}"

    def make_org(self) -> str:
        stem = self.stem().capitalize() if self.rng.random() < 0.7 else self._surname()
        if self.rng.random() < 0.15:
            return stem
        return f"{stem} {self.pick('org_end')}"

    def make_product(self) -> str:
        roll = self.rng.random()
        stem = self.pick("product_stem") if self.rng.random() < 0.5 else self.stem().capitalize()
        if roll < 0.4:
            number = self.rng.choice(("2", "3", "5", "7", "9", "10", "14", "20", "50", "100", "X", "S", "Pro"))
            return f"{stem} {number}"
        if roll < 0.7:
            return f"{stem} {self.pick('product_kind')}"
        return f"{stem} {self.rng.choice('ABCDEGHKLMNPRSTVX')}{self.rng.randrange(1, 400)}"

    def make_city(self) -> str:
        return self.stem(1).capitalize() + self.pick("city_end")

    def make_place(self) -> str:
        roll = self.rng.random()
        stem = self.pick("place_stem") if self.rng.random() < 0.6 else self.stem().capitalize()
        if roll < 0.3:
            return f"Room {self.rng.choice(('', 'A', 'B', 'C', 'E'))}{self.rng.randrange(1, 420)}"
        if roll < 0.5:
            return f"{self.rng.randrange(1, 200)} {stem} {self.pick('street_end')}"
        return f"{stem} {self.pick('place_end')}"

    def _listed(self, name: str, invented: float = 0.25) -> str:
        """A word of a list, at times altered or invented, so that it has to be copied."""
        roll = self.rng.random()
        if roll < invented / 2:
            return self.stem()
        if roll < invented:
            return f"{self.stem()} {self.pick(name).rsplit(' ', 1)[-1]}"
        return self.pick(name)

    def make_country(self) -> str:
        return self.stem().capitalize() + "ia" if self.rng.random() < 0.3 else self.pick("country")

    def make_colour(self) -> str:
        return self._listed("colour", 0.12)

    def make_material(self) -> str:
        return self._listed("material")

    def make_language(self) -> str:
        return self.stem().capitalize() + "ish" if self.rng.random() < 0.3 else self.pick("language")

    def make_department(self) -> str:
        return self.stem().capitalize() if self.rng.random() < 0.3 else self.pick("department")

    def make_food(self) -> str:
        return self._listed("food", 0.4)

    def make_vehicle(self) -> str:
        return self._listed("vehicle")

    def make_animal(self) -> str:
        return self._listed("animal")

    def make_role(self) -> str:
        nouns = self.nouns["role"]
        role = self.rng.choice(nouns)
        if self.rng.random() < 0.3:
            role = f"{self.rng.choice(self.nouns['mod'])} {role}"
        return role if self.rng.random() < 0.2 else f"the {role}"

    def make_title(self) -> str:
        a, b = self.pick("title_a"), self.pick("title_b")
        form = int(self.rng.random() * 4)
        if form == 0:
            return f"The {a} {b}"
        if form == 1:
            return f"{a} {b}"
        if form == 2:
            return f"{b} of {self.stem().capitalize()}"
        return f"{a} {b} for {self.rng.choice(('Beginners', 'Everyone', 'Experts', 'Children'))}"

    def make_event(self) -> str:
        stem = self.pick("place_stem") if self.rng.random() < 0.5 else self.stem().capitalize()
        return f"{stem} {self.pick('event_end')}"

    def make_project(self) -> str:
        stem = self.stem().capitalize() if self.rng.random() < 0.6 else self.pick("place_stem")
        return f"Project {stem}" if self.rng.random() < 0.6 else stem

    def make_email(self) -> str:
        user = self.rng.choice((self.pick("unit_word"), self.stem(), self.make_first_name().lower()))
        return f"{user}@{self.stem()}.{self.rng.choice(('com', 'org', 'net', 'example', 'co.uk', 'eu'))}"

    def make_url(self) -> str:
        path = f"/{self.pick('unit_word')}" if self.rng.random() < 0.5 else ""
        return f"{self.rng.choice(('www.', 'https://', ''))}{self.stem()}.{self.rng.choice(('org', 'com', 'net', 'example'))}{path}"

    def make_word(self) -> str:
        return self.stem()
