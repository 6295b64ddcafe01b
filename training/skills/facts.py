"""Facts of the bank about named subjects: prose, profiles, lists and tables; follow-ups; near misses."""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

import random

from training.bank import Block
from training.skills.blocks import Instance, pick_question, style
from training.templates import articles
from training.unit import NOT_STATED, Ask, Turn, Unit
from training.world import World

_FEMALE, _MALE = ("she", "her", "her"), ("he", "him", "his")
_THING = ("it", "it", "its")


def pronouns(name: str, kind: str, world: World) -> tuple[str, str, str] | None:
    """Subject, object and possessive pronoun of a subject; None where nobody can tell."""
    if kind != "person":
        return _THING
    first = name.split()[0]
    if first in world.values.names["first_f"]:
        return _FEMALE
    return _MALE if first in world.values.names["first_m"] else None


def pronominalise(text: str, name: str, forms: tuple[str, str, str]) -> str:
    """Replace the subject's name by pronouns: possessive, object at the end or after a preposition, else subject."""
    for full in (f"the {name}", f"The {name}", name):
        at = text.find(full)
        if at < 0:
            continue
        after = text[at + len(full) :]
        before = text[:at].rstrip().rsplit(" ", 1)[-1].lower()
        if after.startswith("'s"):
            return text[:at] + forms[2] + after[2:]
        objective = after[:1] in ("?", ".", ",", "") or before in ("to", "of", "on", "for", "with", "at", "by", "about", "from", "in")
        word = forms[1] if objective else forms[0]
        return text[:at] + (word.capitalize() if at == 0 else word) + after
    return text


class Profile:
    """Several facts about one subject."""

    def __init__(self, world: World, kind: str, blocks: list[Block], name: str = "") -> None:
        self.world = world
        self.kind = kind
        self.name = name or world.subject(kind)
        self.facts = [Instance(block, world, {"s": self.name}) for block in blocks]
        for fact in self.facts:
            fact.nouns = {}
        self.forms = pronouns(self.name, kind, world)

    def prose(self) -> str:
        """The facts as sentences; later ones may start with a pronoun."""
        texts = []
        for index, fact in enumerate(self.facts):
            text = fact.text
            if index and self.forms and self.world.rng.random() < 0.5 and text.startswith((self.name, "The " + self.name)):
                text = pronominalise(text, self.name, self.forms)
                fact.text = text
            texts.append(text if text.endswith((".", "!", "?")) or "\n" in text else text + ".")
        return " ".join(texts)

    def rows(self) -> str:
        """The facts as `label: value` lines in one of several looks."""
        look = self.world.rng.choice(("{k}: {v}", "- {k}: {v}", "* **{k}**: {v}", "{k} – {v}", "- {k} = {v}", "| {k} | {v} |", "{k}\t{v}"))
        lines = [look.format(k=f.block.row or f.block.name.replace("_", " ").capitalize(), v=f.values["v"]) for f in self.facts]
        for fact in self.facts:
            fact.text = fact.values["v"]
        head = self.world.rng.choice((f"{self.name}\n", f"**{self.name}**\n", f"### {self.name}\n", f"Name: {self.name}\n"))
        return head + "\n".join(lines)

    def ask(self, index: int) -> Ask:
        """A question for one fact, at times followed by others with a pronoun."""

        def make(rng: random.Random) -> list[Turn]:
            fact = self.facts[index]
            turns = fact.ask("v")(rng)
            others = [f for f in self.facts if f is not fact]
            if turns and others and self.forms and rng.random() < 0.4:
                for other in rng.sample(others, min(len(others), rng.randrange(1, 3))):
                    more = other.turn(pick_question(other.block, "v", self.world, rng), rng)
                    if more is not None:
                        text = pronominalise(more.question, self.name, self.forms)
                        text = f"And {text[0].lower()}{text[1:]}" if rng.random() < 0.3 else text
                        turns.append(Turn(text[0].upper() + text[1:], more.answer))
            return turns

        return make


def _blocks_of(world: World, kind: str, count: int) -> list[Block]:
    """Facts about a kind of subject; no two of one type of value, for they might mean the same."""
    options = [block for block in world.bank.facts if block.slots["s"].kind == kind]
    world.rng.shuffle(options)
    seen: set[str] = set()
    out: list[Block] = []
    for block in options:
        value = block.answer_kind("v")
        if value not in seen and block.row not in seen and len(out) < count:
            seen |= {value, block.row or value}
            out.append(block)
    return out


def _missing(world: World, profile: Profile) -> Ask | None:
    """A question about the subject that none of its facts answers."""
    stated = {fact.block.slots["v"].kind for fact in profile.facts}
    options = [b for b in _blocks_of(world, profile.kind, 6) if b.slots["v"].kind not in stated]
    if not options:
        return None
    block = options[0]

    def make(rng: random.Random) -> list[Turn]:
        text = pick_question(block, "v", world, rng).text.render({"s": profile.name}, rng, world.rate)
        return [Turn(style(articles(text), rng), NOT_STATED)]

    return make


def _other_subject(world: World, fact: Instance, kind: str) -> Ask:
    """The same attribute of somebody whom the document does not know."""
    name = world.fresh(kind)

    def make(rng: random.Random) -> list[Turn]:
        text = pick_question(fact.block, "v", world, rng).text.render({"s": name}, rng, world.rate)
        return [Turn(style(articles(text), rng), NOT_STATED)]

    return make


def _what_about(first: Profile, second: Profile, index: int) -> Ask:
    """'And the X?' after the same question about another subject."""

    def make(rng: random.Random) -> list[Turn]:
        turns = first.facts[index].ask("v")(rng)
        fact = second.facts[index]
        if turns and fact.values["v"].lower() in fact.text.lower():
            form = rng.choice(("And {}?", "What about {}?", "And for {}?", "How about {}?", "And what about {}?"))
            turns.append(Turn(form.format(second.name), fact.values["v"]))
        return turns

    return make


def profiles(world: World) -> list[Unit]:
    """One to four subjects of a kind with the same facts, told in prose, lists or a table."""
    rng = world.rng
    if not world.bank.facts:
        return []
    kind = rng.choice([block.slots["s"].kind for block in world.bank.facts])
    blocks = _blocks_of(world, kind, rng.randrange(1, 5))
    group = [Profile(world, kind, blocks) for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))]
    look = rng.random()
    units = []
    table = _table(world, group) if look < 0.15 and len(group) > 1 and all(b.row for b in blocks) else ""
    for profile in group:
        text = table or (profile.rows() if look < 0.3 else profile.prose())
        asks = [profile.ask(index) for index in range(len(blocks))]
        unit = Unit(text, asks, "fact", profile.name, subject=profile.name)
        missing = _missing(world, profile)
        unit.missing = [_other_subject(world, rng.choice(profile.facts), kind)] + ([missing] if missing else [])
        units.append(unit)
    if table:
        for unit in units[1:]:
            unit.text = ""
    if len(group) > 1:
        units[-1].asks.append(_what_about(group[0], group[1], rng.randrange(len(blocks))))
    return units


def _table(world: World, group: list[Profile]) -> str:
    """One row for each subject."""
    heads = [fact.block.row for fact in group[0].facts]
    lines = [f"| {world.rng.choice(('Name', '', 'Item', 'Who or what'))} | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for profile in group:
        lines.append(f"| {profile.name} | {' | '.join(fact.values['v'] for fact in profile.facts)} |")
        for fact in profile.facts:
            fact.text = fact.values["v"]
    return "\n".join(lines)
