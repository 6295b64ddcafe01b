"""Whole pages: many paragraphs about one thing, of which some are left out."""

import random

from training.bank import Block, Page
from training.skills.blocks import Instance, style
from training.skills.rename import NONE, Renaming, draw
from training.templates import articles
from training.unit import NOT_STATED, Ask, Turn, Unit
from training.world import World

LEAST = 500
"""Characters of a page at least, whatever room is left."""


def page(world: World) -> Unit | None:
    """A run of a page's paragraphs; the questions of the others are not answered then."""
    pages = [p for p in world.bank.pages if p.held_out == world.held_out]
    chosen = next((p for p in _tries(pages, world.rng) if p.origin not in world.used), None)
    if chosen is None:
        return None
    world.used.add(chosen.origin)
    renaming = _renaming(chosen, world)
    kept, left = _cut(chosen, world)
    shown = [Instance(block, world, renaming=renaming) for block in kept]
    asks = [ask for instance in shown for ask in instance.asks()]
    text = world.rng.choice(("\n\n", "\n\n", "\n")).join(i.text for i in shown)
    title = renaming(chosen.title).capitalize()
    unit = Unit(text, asks, "page", title, subject=chosen.origin)
    unit.missing = [_missed(block, renaming) for block in left]
    unit.missing += [_unanswered(instance) for instance in shown if instance.block.unanswered]
    return unit


def _tries(pages: list[Page], rng: random.Random) -> list[Page]:
    return [rng.choice(pages) for _ in range(6)] if pages else []


def _cut(chosen: Page, world: World) -> tuple[list[Block], list[Block]]:
    """The paragraphs that are shown, as many as there is room for, and the others."""
    rng, notes = world.rng, chosen.notes
    first = rng.randrange(len(notes)) if rng.random() < 0.5 else 0
    kept: list[Block] = []
    size, skipped = 0, rng.choice((0.0, 0.1, 0.3))
    for block in (*notes[first:], *notes[:first]):
        if (not kept or size < max(world.room, LEAST)) and rng.random() >= skipped:
            kept.append(block)
            size += len(block.statements[0].source)
    kept = kept or [notes[0]]
    order = {block.name: place for place, block in enumerate(notes)}
    kept.sort(key=lambda block: order[block.name])
    return kept, [block for block in notes if block not in kept]


def _renaming(chosen: Page, world: World) -> Renaming:
    """One exchange of words for the whole page."""
    if world.rng.random() >= world.renamed:
        return NONE
    asked = (q.text.source for block in chosen.notes for q in block.questions)
    passage = " ".join(block.statements[0].source for block in chosen.notes)
    return draw(asked, passage, world.rng, world.values.stem, world.bank.words)


def _missed(block: Block, renaming: Renaming) -> Ask:
    """A question that a paragraph left out would have answered."""

    def make(rng: random.Random) -> list[Turn]:
        question = rng.choice(block.questions)
        text = renaming(articles(question.text.render({}, rng)))
        return [Turn(style(text, rng), NOT_STATED)]

    return make


def _unanswered(instance: Instance) -> Ask:
    """A question that no paragraph answers."""

    def make(rng: random.Random) -> list[Turn]:
        template = rng.choice(instance.block.unanswered)
        text = template.render({}, rng, instance.rate, instance.nouns)
        return [Turn(style(instance.renaming(text), rng), NOT_STATED)]

    return make
