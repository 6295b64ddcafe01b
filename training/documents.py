"""Whole conversations: a document of many units, then questions about it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training import layout
from training.bank import Bank
from training.skills import events, extraction, facts, hops, labels, pages, permission, told
from training.unit import NOT_STATED, Ask, Turn, Unit
from training.world import World

Maker = Callable[[World], list[Unit]]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of one training sequence and the skill of each answer, in order."""

    messages: tuple[Message, ...]
    skills: tuple[str, ...]
    apart: bool = False
    """whether the documents lie in the system message alone, apart from every question"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What kind of conversation is wanted. `chars` is the wanted document length."""

    chars: int
    turns: int
    skill: str = ""
    """ask only for this skill (evaluation)"""
    plain: bool = False
    """the product's own layout and instruction"""


def _one(maker: Callable[[World], Unit | None]) -> Maker:
    def make(world: World) -> list[Unit]:
        unit = maker(world)
        return [unit] if unit else []

    return make


MAKERS: dict[str, tuple[Maker, float]] = {
    "page": (_one(pages.page), 1.5),
    "note": (_one(told.note), 8.0),
    "policy": (_one(told.policy), 7.0),
    "schema": (_one(told.schema), 3.0),
    "event": (_one(events.unit), 2.8),
    "fact": (facts.profiles, 2.8),
    "two-hop": (hops.two_hop, 1.0),
    "permission": (_one(permission.unit), 0.9),
    "comparison": (hops.comparison, 0.9),
    "list": (hops.listing, 0.8),
    "label": (labels.make, 0.8),
    "extraction": (_one(extraction.make), 0.3),
}
ASK_WEIGHT = {
    "note": 9.0,
    "policy": 8.0,
    "schema": 4.0,
    "event": 3.5,
    "fact": 4.0,
    "two-hop": 5.0,
    "comparison": 5.0,
    "list": 4.0,
    "label": 7.0,
    "extraction": 5.0,
    "permission": 4.0,
}


PAGES_ALONE = 0.3
"""Share of the documents that are pages alone."""
ASKED_OF_PAGE = 2.5
"""Weight of each question of a page; other units share one weight among their questions."""


def make_units(world: World, plan: Plan) -> list[Unit]:
    """Units until the wanted length is reached; one kind may dominate a document."""
    rng = world.rng
    names = list(MAKERS)
    weights = [MAKERS[name][1] * rng.choice((0.0, 0.3, 1.0, 1.0, 2.0)) for name in names]
    if plan.skill in MAKERS:
        own = names.index(plan.skill)
        weights[own] = (sum(weights) if plan.turns > 1 else max(weights)) + 1.0
    if world.bank.pages and not plan.skill and rng.random() < PAGES_ALONE:
        weights = [float(name == "page") for name in names]
    if not any(weights):
        weights = [MAKERS[name][1] for name in names]
    units: list[Unit] = []
    size = 0
    while size < plan.chars:
        name = plan.skill if not units and plan.skill in MAKERS else rng.choices(names, weights)[0]
        world.room = plan.chars - size
        made = hops.articled(MAKERS[name][0](world) or [told.schema(world)])
        units += made
        size += sum(len(u.text) + sum(map(len, u.apart)) + 8 for u in made) + 1
        if len(units) > 2000:
            break
    return units


def _paragraphs(units: Sequence[Unit], world: World) -> list[tuple[str, str]]:
    """(title, text) of all paragraphs in document order: parts kept `apart` go to random places."""
    rng = world.rng
    out = [(u.title, u.text) for u in units if u.text]
    if rng.random() < 0.7:
        rng.shuffle(out)
    for unit in units:
        for text in unit.apart:
            out.insert(rng.randrange(len(out) + 1), ("", text))
    if world.bank.fillers and rng.random() < 0.8:
        for _ in range(rng.randrange(0, 2 + len(out) // 4)):
            out.insert(rng.randrange(len(out) + 1), ("", filler(world)))
    return out


def filler(world: World) -> str:
    """A sentence that answers nothing."""
    template = world.rng.choice(world.bank.fillers)
    return template.render(
        {name: world.draw(name) for name in template.slots}, world.rng, world.rate
    )


def _join(paragraphs: Sequence[tuple[str, str]], world: World) -> str:
    """Paragraphs as one section body: runs of prose, bullets, headings."""
    rng = world.rng
    look = rng.random()
    titled = rng.choice((0.0, 0.0, 0.3, 0.8))
    style = rng.randrange(6)
    parts: list[str] = []
    for title, text in paragraphs:
        if text[:1].islower() and rng.random() < 0.9:
            text = text[0].upper() + text[1:]
        if rng.random() < 0.03:
            text = layout.emphasise(text, rng)
        if title and rng.random() < titled:
            head = layout.heading(title, rng, style)
            parts.append(f"\n\n{head}{text}\n" if parts else f"{head}{text}\n")
        elif look < 0.2 and "\n" not in text:
            parts.append(f"\n- {text}" if parts else f"- {text}")
        elif "\n" in text:
            parts.append(f"\n\n{text}\n\n" if parts else f"{text}\n\n")
        else:
            parts.append(rng.choice((" ", " ", "\n\n", "\n")) + text if parts else text)
    body = "".join(parts).replace("\n\n\n", "\n\n").replace("\n ", "\n").replace("..", ".").strip()
    return layout.wrap(body, rng.randrange(60, 110)) if rng.random() < 0.3 else body


def document(units: Sequence[Unit], world: World, plain: bool) -> str:
    """All units as sections with headers."""
    rng = world.rng
    paragraphs = _paragraphs(units, world)
    style = 0 if plain or rng.random() < 0.82 else rng.randrange(1, 6)
    sections: list[str] = []
    at = 0
    step = rng.choice((4, 8, 12, 16, 30))
    while at < len(paragraphs):
        take = max(1, int(step * (0.5 + rng.random())))
        chunk = paragraphs[at : at + take]
        title = (
            next((t for t, _ in chunk if t), "")
            if rng.random() < 0.5
            else layout.section_title(rng)
        )
        greeting = layout.greeting(world)
        body = _join(chunk, world)
        sections.append(
            layout.header(title or "Notes", style, rng)
            + (f"{greeting}\n\n" if greeting else "")
            + body
        )
        at += take
    return "\n\n".join(sections)


SINGLE = frozenset({"policy", "schema", "event", "fact"})
"""Skills of one fact in one place; `Plan.skill` "single" asks for any of them."""


def _asks(units: Sequence[Unit], skill: str) -> tuple[list[tuple[str, Ask]], list[float]]:
    pairs: list[tuple[str, Ask]] = []
    weights: list[float] = []
    for unit in units:
        if skill and unit.skill != skill and not (skill == "single" and unit.skill in SINGLE):
            continue
        for ask in unit.asks:
            pairs.append((unit.skill, ask))
            own = ASK_WEIGHT.get(unit.skill, 0.0) / len(unit.asks)
            weights.append(own or ASKED_OF_PAGE)
    return pairs, weights


def _unanswerable(units: Sequence[Unit], world: World) -> list[Turn]:
    """A near miss about a unit of the document, or a topic it does not hold."""
    rng = world.rng
    if rng.random() < 0.3:
        ask = told.missing_policy(world)
        return ask(rng) if ask else []
    options = [ask for unit in units for ask in unit.missing]
    return rng.choice(options)(rng) if options else []


def make_turns(units: Sequence[Unit], world: World, plan: Plan) -> list[tuple[str, Turn]]:
    """Questions with their skills; none twice."""
    rng = world.rng
    pairs, weights = _asks(units, "" if plan.skill == "unanswerable" else plan.skill)
    out: list[tuple[str, Turn]] = []
    seen: set[str] = set()
    miss = 1.0 if plan.skill == "unanswerable" else 0.0 if plan.skill else 0.08
    for _ in range(plan.turns * 3):
        if len(out) >= plan.turns:
            break
        if rng.random() < miss:
            skill, turns = "unanswerable", _unanswerable(units, world)
        elif pairs:
            skill, ask = rng.choices(pairs, weights)[0]
            turns = ask(rng)
        else:
            break
        if not turns or turns[0].question in seen:
            continue
        seen.add(turns[0].question)
        for index, turn in enumerate(turns):
            question = (
                turn.question[0].upper() + turn.question[1:]
                if rng.random() < 0.9
                else turn.question
            )
            out.append((skill if not index else "follow-up", Turn(question, turn.answer)))
    return out


def make_conversation(
    rng: random.Random, bank: Bank, plan: Plan, held_out: bool = False
) -> Conversation | None:
    """A whole conversation, or None when nothing could be asked."""
    world = World(rng, bank, held_out)
    units = make_units(world, plan)
    text = document(units, world, plan.plain)
    turns = make_turns(units, world, plan)
    if not turns:
        return None
    usual = plan.plain or rng.random() < 0.82
    instruction = layout.INSTRUCTION if usual else rng.choice(layout.OTHER_INSTRUCTIONS)
    if not usual and rng.random() < 0.2:
        instruction = f"{layout.greeting(world)}\n{instruction}".strip()
    skills = tuple(skill for skill, _ in turns)
    messages = _messages(instruction, text, [turn for _, turn in turns], usual, rng)
    apart = len(messages[0].content) >= len(text) and messages[0].role == "system"
    return Conversation(messages, skills, apart)


def _messages(
    instruction: str, text: str, turns: Sequence[Turn], usual: bool, rng: random.Random
) -> tuple[Message, ...]:
    """Document in the system message, or (variation) in the first user message."""
    messages: list[Message] = []
    first = ""
    if usual or rng.random() < 0.6:
        messages.append(Message("system", f"{instruction}\n\n{text}".strip()))
    else:
        if instruction and rng.random() < 0.6:
            messages.append(Message("system", instruction))
            first = f"{text}\n\n"
        else:
            first = f"{instruction}\n\n{text}\n\n".lstrip()
        if rng.random() < 0.3:
            first += "Question: "
    for turn in turns:
        messages.append(Message("user", first + turn.question))
        messages.append(Message("assistant", turn.answer))
        first = ""
    return tuple(messages)


__all__ = ["NOT_STATED", "Conversation", "Message", "Plan", "make_conversation"]
