"""Who does what, where, when, how often, why: sentences composed freely, asked by any of their parts."""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

import random
from dataclasses import dataclass

from training.unit import Ask, Turn, Unit
from training.verbs import Forms, VerbGroup, verb_groups
from training.world import Phrase, World

HABIT, DUTY, PAST, FUTURE = "habit", "duty", "past", "future"
PLURAL = frozenset({"things", "group"})
UNCOUNTED = frozenset({"mass"})


@dataclass(slots=True)
class Event:
    """One happening. `extras` maps a slot (place, when, often, by, why, cond, with, to) to its phrase."""

    world: World
    group: VerbGroup
    agent: Phrase
    plural_agent: bool
    named: bool
    obj: str
    tense: str
    extras: dict[str, Phrase]

    def article(self, upper: bool = False) -> str:
        """The object with its article."""
        if self.group.objects in ("things", "group", "mass") and self.world.rng.random() < 0.4:
            return self.obj
        return f"the {self.obj}"

    def verb(self) -> Forms:
        """One of the verbs that name this happening."""
        return self.world.rng.choice(self.group.verbs)

    def active(self, verb: Forms) -> str:
        """The verb phrase after the agent, without object."""
        if self.tense == HABIT:
            return verb.base if self.plural_agent else verb.third
        if self.tense == DUTY:
            have = "have" if self.plural_agent else "has"
            modal = self.world.rng.choice(("must", "should", f"{have} to", "will always", "is to" if not self.plural_agent else "are to"))
            return f"{modal} {verb.base}"
        return verb.past if self.tense == PAST else f"{self.world.rng.choice(('will', 'will'))} {verb.base}"

    def passive(self, verb: Forms) -> str:
        """The passive after the object."""
        many = self.group.objects in PLURAL
        be = {HABIT: ("is", "are"), DUTY: ("must be", "must be"), PAST: ("was", "were"), FUTURE: ("will be", "will be")}
        return f"{be[self.tense][many]} {verb.participle}"

    def aux(self) -> tuple[str, str]:
        """The auxiliary of a question about the agent's doing, and of one in the passive."""
        many = self.group.objects in PLURAL
        active = {HABIT: "do" if self.plural_agent else "does", DUTY: "should", PAST: "did", FUTURE: "will"}[self.tense]
        passive = {HABIT: "are" if many else "is", DUTY: "must", PAST: "were" if many else "was", FUTURE: "will"}
        return active, passive[self.tense]


def _agent(world: World) -> tuple[Phrase, bool, bool]:
    """An agent, whether it is plural and whether it is a name."""
    roll = world.rng.random()
    if roll < 0.4:
        name = world.values.draw("person")
        return Phrase(name, name), False, True
    if roll < 0.5:
        name = world.values.draw("org")
        return Phrase(name, name), False, True
    if roll < 0.85:
        role = f"the {world.np_job()}"
        return Phrase(role, role), False, False
    group = f"the {world.np_group()}"
    return Phrase(group, group), True, False


def _extra(world: World, slot: str) -> Phrase:
    rng = world.rng
    if slot == "when":
        return world.when()
    if slot == "by":
        return world.deadline()
    if slot == "place":
        if rng.random() < 0.3:
            place = world.values.draw("place")
            return Phrase(f"in {place}", place)
        text = world.np_where()
    elif slot == "often":
        text = world.np_freq()
    elif slot == "why":
        text = world.np_reason()
    elif slot == "cond":
        text = world.np_cond()
    elif slot == "with":
        tool = f"a {world.np_thing()}"
        return Phrase(f"with {tool}", tool)
    elif slot == "to":
        person = world.values.draw("person") if rng.random() < 0.5 else f"the {world.np_job()}"
        return Phrase(f"for {person}", person)
    else:
        cost = world.values.draw("money")
        return Phrase(f"for {cost}", cost)
    return Phrase(text, text)


def make_event(world: World, obj: str = "", group: VerbGroup | None = None) -> Event:
    """A random event that the document does not hold yet."""
    rng = world.rng
    for _ in range(20):
        chosen = group or rng.choice(verb_groups())
        phrase = obj or world.np({"room": "room", "group": "group"}.get(chosen.objects, chosen.objects), 0.6)
        key = f"event {chosen.verbs[0].base} {phrase}"
        if key not in world.used:
            break
    world.used.add(key)
    agent, many, named = _agent(world)
    tense = rng.choices((HABIT, DUTY, PAST, FUTURE), (5, 2, 3, 1))[0]
    slots = ["when", "place", "often", "by", "why", "cond", "with", "to", "cost"]
    weights = [4, 4, 0 if tense == PAST else 4, 2 if tense in (DUTY, FUTURE) else 0, 3, 2 if tense != PAST else 0, 2, 1, 1]
    count = rng.choices((1, 2, 3), (4, 5, 2))[0]
    extras: dict[str, Phrase] = {}
    for slot in rng.choices(slots, weights, k=count):
        if (slot == "often" and "when" in extras) or (slot in ("when", "by") and ("often" in extras or "by" in extras or "when" in extras)):
            continue
        if slot in ("cost", "to") and ("cost" in extras or "to" in extras):
            continue
        extras.setdefault(slot, _extra(world, slot))
    return Event(world, chosen, agent, many, named, phrase, tense, extras)


def _tail(event: Event, skip: str = "") -> str:
    order = [slot for slot in ("with", "to", "cost", "place", "often", "when", "by", "cond", "why") if slot in event.extras]
    if event.world.rng.random() < 0.3:
        event.world.rng.shuffle(order)
        if "why" in order:
            order.remove("why")
            order.append("why")
    return "".join(f" {event.extras[slot].text}" for slot in order if slot != skip)


def state(event: Event) -> str:
    """One to three sentences that tell the whole event."""
    rng = event.world.rng
    verb, agent, obj = event.verb(), event.agent.text, event.article()
    form = rng.random()
    if form < 0.26:
        return f"{agent} {event.active(verb)} {obj}{_tail(event)}."
    if form < 0.5:
        return f"{obj} {event.passive(verb)} by {agent}{_tail(event)}."
    if form < 0.62 and event.extras:
        slot = rng.choice(list(event.extras))
        front = event.extras[slot].text
        rest = _tail(event, slot)
        comma = "," if rng.random() < 0.6 else ""
        if rng.random() < 0.5:
            return f"{front}{comma} {agent} {event.active(verb)} {obj}{rest}."
        return f"{front}{comma} {obj} {event.passive(verb)}{rest} by {agent}."
    if form < 0.72:
        return _duty(event, verb)
    if form < 0.88 and event.extras:
        return _two_sentences(event, verb)
    if form < 0.93:
        relative = "which" if rng.random() < 0.5 else "that"
        return f"It is {agent} who {event.active(verb)} {obj}{_tail(event)}." if rng.random() < 0.5 else (
            f"{agent} has {'a task' if relative == 'which' else 'a job'}: {verb.ing} {obj}{_tail(event)}."
        )
    parts = ", ".join(event.extras[slot].text for slot in event.extras)
    return f"{verb.ing} {obj}: {event.agent.answer}{', ' + parts if parts else ''}"


def _duty(event: Event, verb: Forms) -> str:
    rng = event.world.rng
    be = "are" if event.plural_agent else "is"
    agent, obj, rest = event.agent.text, event.article(), _tail(event)
    if event.tense == PAST:
        return rng.choice((
            f"{verb.ing} {obj}{rest} was the job of {agent}.",
            f"{agent} was asked to {verb.base} {obj}{rest}.",
            f"{agent} had the task of {verb.ing} {obj}{rest}.",
        ))
    return rng.choice((
        f"{agent} {be} responsible for {verb.ing} {obj}{rest}.",
        f"{verb.ing} {obj}{rest} is the job of {agent}.",
        f"The job of {verb.ing} {obj}{rest} falls to {agent}.",
        f"{agent} {be} expected to {verb.base} {obj}{rest}.",
        f"It is up to {agent} to {verb.base} {obj}{rest}.",
        f"We ask {agent} to {verb.base} {obj}{rest}.",
        f"We rely on {agent} to {verb.base} {obj}{rest}.",
    ))


def _two_sentences(event: Event, verb: Forms) -> str:
    """One extra moves to a second sentence that names neither agent nor object."""
    rng = event.world.rng
    slot = rng.choice(list(event.extras))
    phrase = event.extras[slot].text
    first = f"{event.agent.text} {event.active(verb)} {event.article()}{_tail(event, slot)}."
    if rng.random() < 0.4:
        first = f"{event.article()} {event.passive(verb)}{_tail(event, slot)} by {event.agent.text}."
    if event.tense == PAST:
        second = rng.choice((f"This was done {phrase}.", f"It happened {phrase}.", f"This took place {phrase}."))
    else:
        second = rng.choice((f"This is done {phrase}.", f"This happens {phrase}.", f"It is always done {phrase}.",
                             f"That happens {phrase}.", f"Normally it is done {phrase}."))
    return f"{first[0].upper()}{first[1:]} {second}"


def _ask_agent(event: Event, rng: random.Random) -> str:
    verb, obj = event.verb(), event.article()
    _, passive = event.aux()
    be = " be" if event.tense in (DUTY, FUTURE) else ""
    modal = {HABIT: verb.third, DUTY: f"must {verb.base}", PAST: verb.past, FUTURE: f"will {verb.base}"}[event.tense]
    return rng.choice((
        f"Who {modal} {obj}?",
        f"Who {modal} {obj}?",
        f"By whom {passive} {obj}{be} {verb.participle}?",
        f"Whose job {'was' if event.tense == PAST else 'is'} it to {verb.base} {obj}?",
        f"Who {'was' if event.tense == PAST else 'is'} responsible for {verb.ing} {obj}?",
        f"Tell me who {modal} {obj}.",
        f"{verb.ing} {obj}: who?",
        f"Do you know who {modal} {obj}?",
        f"Please tell me who {modal} {obj}.",
    ))


WORDS = {
    "place": ("Where", "Where", "In which place", "At what place"),
    "when": ("When", "When", "At what time"),
    "often": ("How often", "How often", "How frequently", "When", "At what intervals"),
    "by": ("By when", "Until when", "When", "How late"),
    "why": ("Why", "Why", "For what reason", "What for"),
    "cond": ("Under what condition", "In which case", "When", "In what circumstances"),
    "with": ("With what", "What with", "With which tool"),
    "to": ("For whom", "Who for"),
    "cost": ("For how much", "For what price", "At what price"),
}


def _word(event: Event, slot: str, rng: random.Random) -> str:
    """A question word for a slot; `When` only where the document gives a single time."""
    word = rng.choice(WORDS[slot])
    times = sum(name in event.extras for name in ("when", "often", "by", "cond"))
    if word == "When" and slot != "when" and times > 1:
        return WORDS[slot][0]
    return word


def _ask_extra(event: Event, slot: str, rng: random.Random) -> str:
    verb, obj = event.verb(), event.article()
    active, passive = event.aux()
    be = "be " if event.tense in (DUTY, FUTURE) else ""
    word = _word(event, slot, rng)
    agent = event.agent.text
    forms = [
        f"{word} {passive} {obj} {be}{verb.participle}?",
        f"{word} {passive} {obj} {be}{verb.participle}?",
        f"{word} {active} {agent} {verb.base} {obj}?",
        f"Tell me {word.lower()} {obj} {event.passive(verb)}.",
        f"{obj} {verb.participle}: {word.lower()}?",
    ]
    if slot == "why":
        forms.append(f"What {'was' if event.tense == PAST else 'is'} the reason for {verb.ing} {obj}?")
    if slot == "with":
        forms.append(f"What {'was' if event.tense == PAST else 'is'} used to {verb.base} {obj}?")
    if slot == "place":
        forms.append(f"Where do I go to see {obj} being {verb.participle}?")
    if slot in ("when", "often", "by") and event.tense == HABIT:
        forms.append(f"{verb.ing} {obj} {word.lower()}")
    return rng.choice(forms)


def _ask_object(event: Event, rng: random.Random) -> str:
    verb = event.verb()
    active, passive = event.aux()
    hint = rng.choice([phrase.text for phrase in event.extras.values()] or [""])
    be = "be " if event.tense in (DUTY, FUTURE) else ""
    who = {"group": "Who"}.get(event.group.objects, "What")
    if not event.named:
        return f"What {active} {event.agent.text} {verb.base}{' ' + hint if hint else ''}?"
    return rng.choice((
        f"{who} {active} {event.agent.text} {verb.base}?",
        f"{who} {'is' if passive == 'are' else passive} {be}{verb.participle} by {event.agent.text}?",
        f"What {active} {event.agent.text} {verb.base}{' ' + hint if hint else ''}?",
    ))


def _follow_ups(event: Event, first: str, rng: random.Random) -> list[Turn]:
    """Questions that lean on the one before: 'And who does that?'"""
    pronoun = "them" if event.group.objects in PLURAL else "it"
    verb = event.verb()
    turns: list[Turn] = []
    if first != "agent":
        modal = {HABIT: verb.third, DUTY: f"must {verb.base}", PAST: verb.past, FUTURE: f"will {verb.base}"}[event.tense]
        question = rng.choice((f"Who {modal} {pronoun}?", f"And who {modal} {pronoun}?", "Who does that?", "And by whom?", "And who does it?"))
        turns.append(Turn(question, event.agent.answer))
    for slot, phrase in event.extras.items():
        if slot != first:
            word = _word(event, slot, rng)
            _, passive = event.aux()
            be = "be " if event.tense in (DUTY, FUTURE) else ""
            subject = "they" if pronoun == "them" else "it"
            question = rng.choice((f"And {word.lower()}?", f"{word}?", f"{word} {passive} {subject} {be}{verb.participle}?",
                                   f"And {word.lower()} {passive} {subject} {be}{verb.participle}?"))
            turns.append(Turn(question, phrase.answer))
    rng.shuffle(turns)
    return turns[: rng.randrange(1, 3)]


def _ask(event: Event, slot: str, text: str) -> Ask:
    definite = f"the {event.obj}"
    obj = definite if definite.lower() in text.lower() else event.obj

    def make(rng: random.Random) -> list[Turn]:
        if slot == "agent":
            turn = Turn(_ask_agent(event, rng), event.agent.answer)
        elif slot == "object":
            turn = Turn(_ask_object(event, rng), obj)
        else:
            turn = Turn(_ask_extra(event, slot, rng), event.extras[slot].answer)
        more = _follow_ups(event, slot, rng) if slot != "object" and rng.random() < 0.2 else []
        return [turn, *more]

    return make


def unit(world: World) -> Unit:
    """One event and every question about it, with those about its unstated sides."""
    event = make_event(world)
    text = state(event)
    slots = ["agent", *event.extras]
    if event.named or event.extras:
        slots.append("object")
    kinds = {("place" if s == "place" else s) for s in event.extras} | {"person"}
    missing = [slot for slot in ("why", "place", "often", "cost", "with") if slot not in event.extras]
    if event.tense == PAST and "often" in missing:
        missing.remove("often")
    if not {"when", "often", "by", "cond"} & set(event.extras):
        missing.append("when")

    def not_said(rng: random.Random) -> list[Turn]:
        return [Turn(_ask_extra(event, rng.choice(missing), rng), "not stated")]

    asks = [_ask(event, slot, text) for slot in slots]
    title = event.obj if world.rng.random() < 0.5 else f"{event.verb().ing} {event.obj}"
    return Unit(text, asks, "event", title, states={(event.obj, kind) for kind in kinds}, subject=event.obj,
                missing=[not_said])
