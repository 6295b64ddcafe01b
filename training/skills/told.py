"""Units from policies, notes and schemas, and questions about such as a document does not hold."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from training.bank import Block
from training.skills.blocks import WORD_TYPES, Instance, pick_question, style, title_of
from training.skills.rename import content_words, stem, stems
from training.templates import Template
from training.unit import NOT_STATED, Ask, Turn, Unit
from training.world import World


def policy(world: World) -> Unit | None:
    """A policy of the bank that the document does not hold yet."""
    block = _unused(world.bank.policies, world)
    if block is None:
        return None
    instance = Instance(block, world)
    unit = Unit(
        instance.text, instance.asks(), "policy", title_of(block).capitalize(), subject=block.name
    )
    return unit


def schema(world: World) -> Unit:
    """A generic statement over random noun phrases."""
    block = world.rng.choice(world.bank.schemas)
    instance = Instance(block, world)
    key = next(iter(block.slots))
    subject = instance.values[key]
    unit = Unit(instance.text, instance.asks(), "schema", subject.capitalize(), subject=subject)
    unit.states = {(subject, block.answer_kind(slot)) for slot in block.slots if slot != key}
    kind = block.slots[key].kind
    slots = [q.slot for q in block.questions if key in q.keys]
    if kind in WORD_TYPES and slots:
        unit.missing = [instance.miss(world.rng.choice(slots), key, world.distinct(kind))]
    return unit


def note(world: World) -> Unit | None:
    """A note that the document does not hold yet; held-out ones are the evaluation's."""
    block = _unused(_side(world.bank.notes, world), world)
    if block is None:
        return None
    instance = Instance(block, world)
    unit = Unit(
        instance.text, instance.asks(), "note", _heading(instance, world), subject=block.name
    )
    unit.missing = [_unanswered(instance, template) for template in block.unanswered]
    return unit


def _side(notes: Sequence[Block], world: World) -> Sequence[Block]:
    return _sides(tuple(notes))[world.held_out]


@lru_cache(4)
def _sides(notes: tuple[Block, ...]) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    held = tuple(block for block in notes if block.statements[0].held_out)
    return tuple(block for block in notes if not block.statements[0].held_out), held


def _heading(instance: Instance, world: World) -> str:
    """A word or two that the questions share with the passage."""
    own = stems(instance.original)
    asked = Counter(
        word
        for q in instance.block.questions
        for word in content_words(q.text.source)
        if stem(word)[0] in own
    )
    chosen = [word for word, _ in asked.most_common(4)][: world.rng.randrange(1, 3)]
    return instance.renaming(world.rng.choice((" and ", ", ", " ")).join(chosen)).capitalize()


def _unanswered(instance: Instance, template: Template) -> Ask:
    """A question on the note's subject that it does not answer."""

    def make(rng: random.Random) -> list[Turn]:
        text = template.render({}, rng, instance.rate, instance.nouns)
        return [Turn(style(instance.renaming(text), rng), NOT_STATED)]

    return make


def missing_policy(world: World) -> Ask | None:
    """A question about a policy or a note that this document does not hold."""
    told: Sequence[Block] = world.bank.policies
    if world.rng.random() < 0.5:
        told = _side(world.bank.notes, world) or told
    block = _unused(told, world)
    if block is None:
        return None
    slot = world.rng.choice([q.slot for q in block.questions])

    def make(rng: random.Random) -> list[Turn]:
        question = pick_question(block, slot, world, rng)
        if question.keys:
            return []
        return [Turn(style(question.text.render({}, rng, world.rate), rng), NOT_STATED)]

    return make


_NONE: frozenset[str] = frozenset()


def _unused(blocks: Sequence[Block], world: World) -> Block | None:
    if not blocks:
        return None
    for _ in range(10):
        block = blocks[int(world.rng.random() * len(blocks))]
        if block.name not in world.used and not world.used & world.bank.rivals.get(
            block.name, _NONE
        ):
            world.used.add(block.name)
            return block
    return None
