"""Units from the blocks of the bank (facts, policies) and from the schemas."""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache

from training.bank import Block, Question
from training.skills.overlap import noisy, overlap_question
from training.skills.rename import NONE, Renaming, draw
from training.templates import Noun, Template, articles
from training.unit import NOT_STATED, Ask, Turn, contains
from training.values import word_classes
from training.world import World

OVERLAP = {"note": 0.12}
"""Share of a kind's questions made from the words around the answer; 0.25 of every other kind."""
FOREIGN = {"note": 0.1}
"""Share of a kind's fixed alternatives that come from other blocks; 0.45 of every other kind."""
NOISE = {"note": 0.15}
"""Share of a kind's own questions that are spoilt a little; 0.22 of every other kind."""
WORD_TYPES = frozenset(
    {"thing", "things", "doc", "room", "group", "job", "activity", "mass", "container"}
)


def pick_template(options: Sequence[Template], world: World, rng: random.Random) -> Template:
    """A phrasing of this world's side: evaluation prefers held-out ones, training avoids them."""
    side = (
        [t for t in options if t.held_out]
        if world.held_out
        else [t for t in options if not t.held_out]
    )
    pool = side or options
    return pool[int(rng.random() * len(pool))]


def pick_question(block: Block, slot: str, world: World, rng: random.Random) -> Question:
    """A question for a slot, on this world's side."""
    options = [q for q in block.questions if q.slot == slot]
    side = [q for q in options if q.text.held_out == world.held_out]
    pool = side or options
    return pool[int(rng.random() * len(pool))]


def _option(options: Sequence[str], world: World, foreign: float) -> str:
    """One of the fixed alternatives, or (`foreign` is how often) one of another block with the same
    first word.

    Else the few alternatives of a block would be learnt by heart instead of being read.
    """
    rng = world.rng
    value = options[int(rng.random() * len(options))]
    if rng.random() < foreign:
        first = value.split(" ", 1)[0]
        if first in ("in", "on", "at", "behind", "under", "next", "with") and rng.random() < 0.3:
            return world.np_where()
        others = world.bank.options.get(first)
        if others:
            return others[int(rng.random() * len(others))]
    return value


def draw_values(
    block: Block, world: World, keep: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Values of all slots, distinct from each other; phrases not used elsewhere in the document."""
    values: dict[str, str] = dict(keep or {})
    foreign = FOREIGN.get(block.kind, 0.45)
    for name, slot in block.slots.items():
        if name in values:
            continue
        for _ in range(12):
            if slot.options:
                value = _option(slot.options, world, foreign)
            elif slot.kind in WORD_TYPES:
                value = world.fresh(slot.kind)
            else:
                value = world.draw(slot.kind)
            if value not in values.values():
                break
        values[name] = value
    return values


@cache
def _nouns(block: Block) -> tuple[tuple[str, str], ...]:
    """(noun, class) of every replaceable noun of a block."""
    templates = [*block.statements, *(q.text for q in block.questions)]
    found = dict.fromkeys(
        part.base for t in templates for part in t.parts if isinstance(part, Noun)
    )
    classes = word_classes("nouns.txt")
    return tuple(
        (noun, next(name for name in ("thing", "doc", "room", "activity") if noun in classes[name]))
        for noun in found
    )


def swaps(block: Block, world: World) -> dict[str, str]:
    """Nouns of the block to be replaced in all of its phrasings (often none)."""
    rng = world.rng
    if block.kind == "schema" or rng.random() > 0.5:
        return {}
    return {
        noun: world.noun(name) if rng.random() < 0.8 else world.values.stem()
        for noun, name in _nouns(block)
        if rng.random() < 0.7
    }


def _renaming(block: Block, text: str, world: World) -> Renaming:
    """Other words for a policy or a note, in some documents."""
    if block.kind not in ("policy", "note") or world.rng.random() >= world.renamed:
        return NONE
    asked = (question.text.source for question in block.questions)
    return draw(asked, text, world.rng, world.values.stem, world.bank.words)


class Instance:
    """A block with its values: states itself and asks."""

    def __init__(
        self,
        block: Block,
        world: World,
        keep: Mapping[str, str] | None = None,
        renaming: Renaming | None = None,
    ) -> None:
        self.block = block
        self.world = world
        self.values = draw_values(block, world, keep)
        self.nouns = swaps(block, world)
        template = pick_template(block.statements, world, world.rng)
        self.rate = world.rate
        self.original = articles(template.render(self.values, world.rng, self.rate, self.nouns))
        self.renaming = _renaming(block, self.original, world) if renaming is None else renaming
        self.text = articles(self.renaming(self.original))

    def turn(self, question: Question, rng: random.Random) -> Turn | None:
        """The question and its answer, or None when the answer is no piece of the text."""
        answer = articles(self.renaming(question.answer.render(self.values, rng)))
        if question.answer.source[0] == "{":
            answer = (
                answer
                if self.values[question.slot][:1].isupper()
                else answer[:1].lower() + answer[1:]
            )
        elif question.answer.source[0].islower():
            answer = answer[:1].lower() + answer[1:]
        if not contains(self.text, answer):
            answer = self.renaming(self.values[question.slot])
            if not contains(self.text, answer):
                return None
        values: Mapping[str, str] = self.values
        if question.keys and self.block.kind == "schema" and rng.random() < 0.2:
            kinds = self.block.slots
            values = {
                k: self.world.short(v) if kinds[k].kind in WORD_TYPES else v
                for k, v in values.items()
            }
        text = articles(question.text.render(values, rng, self.rate, self.nouns))
        if self.renaming.breaks(self.original, text):
            return None
        text = articles(self.renaming(text))
        if (
            not self.world.held_out
            and self.block.kind != "schema"
            and rng.random() < NOISE.get(self.block.kind, 0.22)
        ):
            text = noisy(text, " ".join(self.values.values()), rng)
        return Turn(style(text, rng), answer)

    def overlap(self, slot: str, rng: random.Random) -> Turn | None:
        """A question in the words around the slot's value; the answer is the form that the bank
        asks for.
        """
        question = pick_question(self.block, slot, self.world, rng)
        value, kind = self.values[slot], self.block.slots[slot].kind
        bare = self.turn(question, rng)
        subject = self.values.get("s", "")
        title = title_of(self.block) if not subject else self.block.row.lower()
        if bare is None or any(
            self.block.slots[n].kind == kind != "" for n in self.block.slots if n != slot
        ):
            return None
        asked = overlap_question(self.text, bare.answer, kind, title, rng)
        if asked is None or value.lower() in asked.lower() or subject.lower() not in asked.lower():
            return None
        return Turn(style(asked, rng), bare.answer)

    def ask(self, slot: str) -> Ask:
        """A maker of questions for a slot."""

        def make(rng: random.Random) -> list[Turn]:
            if (
                self.block.kind != "schema"
                and not self.world.held_out
                and rng.random() < OVERLAP.get(self.block.kind, 0.25)
            ):
                turn = self.overlap(slot, rng)
                if turn is not None:
                    return [turn]
            for _ in range(3):
                turn = self.turn(pick_question(self.block, slot, self.world, rng), rng)
                if turn is not None:
                    return [turn]
            return []

        return make

    def asks(self) -> list[Ask]:
        """One maker for each slot that can be asked for."""
        slots = {q.slot for q in self.block.questions}
        return [self.ask(slot) for slot in self.block.slots if slot in slots]

    def miss(self, slot: str, key: str, other: str) -> Ask:
        """The same question about something else (`other` in the slot `key`), which nobody
        answered.
        """

        def make(rng: random.Random) -> list[Turn]:
            question = pick_question(self.block, slot, self.world, rng)
            if key not in question.keys:
                return []
            text = question.text.render(
                {**self.values, key: other}, rng, self.world.rate, self.nouns
            )
            return [Turn(style(articles(text), rng), NOT_STATED)]

        return make


_POLITE = (
    "Please tell me: {q}",
    "Could you tell me: {q}",
    "Hi, {q}",
    "Hello! {Q}",
    "{Q} Thanks!",
    "Quick question: {q}",
    "{Q} Please answer briefly.",
    "Excuse me, {q}",
)


def style(question: str, rng: random.Random) -> str:
    """Case, typography and politeness as people vary them."""
    roll = rng.random()
    if roll < 0.88:
        return question
    if roll < 0.92:
        return question.lower()
    if roll < 0.95:
        return question.rstrip("?.")
    lower = question if re.match(r"I\b|[A-Z]{2}", question) else question[0].lower() + question[1:]
    return rng.choice(_POLITE).replace("{q}", lower).replace("{Q}", question)


def title_of(block: Block) -> str:
    """A policy's name as words; notes have none."""
    if block.kind == "note":
        return ""
    return re.sub(r"^[a-z]{1,3}\d*_|\d+$", "", block.name).replace("_", " ")
