"""What people may and may not do; yes, no, or the condition."""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

import random

from training.skills.blocks import style
from training.unit import Turn, Unit
from training.verbs import Forms, verb_groups
from training.world import World

_YES = (
    "{G} may {v} {o}{w}.", "{G} are allowed to {v} {o}{w}.", "{G} can {v} {o}{w} without asking.", "It is fine for {g} to {v} {o}{w}.",
    "{G} are welcome to {v} {o}{w}.", "We do not mind if {g} {v} {o}{w}.", "{O} may be {p} by {g}{w}.", "{G} have the right to {v} {o}{w}.",
)
_NO = (
    "{G} may not {v} {o}{w}.", "{G} must not {v} {o}{w}.", "{G} are not allowed to {v} {o}{w}.", "It is forbidden for {g} to {v} {o}{w}.",
    "{O} must never be {p} by {g}{w}.", "{G} should on no account {v} {o}{w}.", "We ask {g} not to {v} {o}{w}.", "No {v_ing} of {o} by {g}{w}, please.",
)
_ONLY = (
    "{G} may {v} {o}{w} only {c}.", "{G} are allowed to {v} {o}{w}, but only {c}.", "Only {c} may {g} {v} {o}{w}.", "{C}, {g} may {v} {o}{w}, but not otherwise.",
    "{G} can {v} {o}{w} {c} and at no other time.",
)
_ASK = (
    "May {g} {v} {o}{w}?", "Can {g} {v} {o}{w}?", "Are {g} allowed to {v} {o}{w}?", "Is it all right for {g} to {v} {o}{w}?",
    "Are {g} permitted to {v} {o}{w}?", "Do you let {g} {v} {o}{w}?", "Is {v_ing} {o} allowed for {g}?", "I am one of the {g}. Can I {v} {o}{w}?",
)
_ASK_COND = ("Under what condition may {g} {v} {o}?", "When may {g} {v} {o}?", "In which case can {g} {v} {o}?")
_ASK_WHO = ("Who may {v} {o}?", "Who is allowed to {v} {o}?")
_ASK_NOT = ("Who must not {v} {o}?", "Who is not allowed to {v} {o}?")


def _fill(line: str, parts: dict[str, str]) -> str:
    for key in ("v_ing", "v", "g", "o", "w", "c", "p"):
        value = parts[key]
        line = line.replace("{" + key + "}", value).replace("{" + key.upper() + "}", value[:1].upper() + value[1:])
    return line


def unit(world: World) -> Unit:
    """One permission, ban or conditional permission."""
    rng = world.rng
    group = rng.choice([g for g in verb_groups() if g.objects in ("thing", "room", "activity", "things")])
    noun = world.fresh(group.objects)
    said, asked = rng.choice(group.verbs), rng.choice(group.verbs)
    people, condition, place = world.np_group(), world.np_cond(), f" {world.np_where()}" if rng.random() < 0.2 else ""
    the = noun if group.objects == "things" else f"the {noun}"
    reason = f", {world.np_reason()}" if rng.random() < 0.2 else ""

    def parts(verb: Forms) -> dict[str, str]:
        return {"v": verb.base, "v_ing": verb.ing, "p": verb.participle, "g": people, "o": the, "w": place, "c": condition}

    roll = rng.random()
    lines, answer = (_YES, "yes") if roll < 0.3 else (_NO, "no") if roll < 0.65 else (_ONLY, condition)
    text = _fill(rng.choice(lines), parts(said))
    if reason and answer != condition:
        text = text.rstrip(".") + reason + "."

    def ask(r: random.Random) -> list[Turn]:
        options: list[tuple[tuple[str, ...], str]] = [(_ASK, answer)] * 3
        options += [(_ASK_COND, condition)] * 2 if answer == condition else [(_ASK_WHO if answer == "yes" else _ASK_NOT, people)]
        form, reply = r.choice(options)
        turns = [Turn(style(_fill(r.choice(form), parts(asked)), r), reply)]
        if reason and reply == "no" and r.random() < 0.5:
            turns.append(Turn(r.choice(("Why?", "And why?", "Why not?", "For what reason?")), reason.removeprefix(", ")))
        return turns

    return Unit(text, [ask], "permission", noun.capitalize(), subject=noun)
