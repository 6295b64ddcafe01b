"""Two hops: one statement leads to the subject of another. Comparison and lists over several statements."""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

import random
from typing import NamedTuple

from training.skills.blocks import Instance, pick_question, style
from training.templates import articles
from training.unit import NOT_STATED, Ask, Turn, Unit
from training.world import World


class Bridge(NamedTuple):
    """How a subject is named by way of another thing: kind of the subject, sentences, noun phrase."""

    kind: str
    sentences: tuple[str, ...]
    phrase: str


BRIDGES = (
    Bridge("person", ("{s} runs the {x}.", "The {x} is run by {s}.", "Since last year {s} has run the {x}."), "the person who runs the {x}"),
    Bridge("person", ("{s} won the {x} prize.", "The {x} prize went to {s}."), "the winner of the {x} prize"),
    Bridge("person", ("{s} is the head of the {x}.", "The {x} is headed by {s}.", "Head of the {x}: {s}"), "the head of the {x}"),
    Bridge("person", ("{s} repaired the {x}.", "The {x} was repaired by {s}."), "the person who repaired the {x}"),
    Bridge("person", ("{s} wrote the {x}.", "The author of the {x} is {s}.", "The {x} was written by {s}."), "the author of the {x}"),
    Bridge("person", ("{s} lost the {x}.", "The {x} was lost by {s}."), "the one who lost the {x}"),
    Bridge("person", ("{s} has the keys of the {x}.", "The keys of the {x} are with {s}."), "the person with the keys of the {x}"),
    Bridge("product", ("For the {x} we use the {s}.", "The {s} is used for the {x}."), "device used for the {x}"),
    Bridge("product", ("The {x} is fitted with the {s}.", "In the {x} you will find the {s}."), "device in the {x}"),
    Bridge("org", ("{s} delivers the {x}.", "The {x} is delivered by {s}.", "We get the {x} from {s}."), "the company that delivers the {x}"),
    Bridge("org", ("{s} insures the {x}.", "The {x} is insured with {s}."), "the insurer of the {x}"),
    Bridge("org", ("The {x} belongs to {s}.", "{s} owns the {x}."), "the owner of the {x}"),
    Bridge("city", ("The {x} stands in {s}.", "{s} is where the {x} stands."), "the town where the {x} stands"),
    Bridge("place", ("The {x} is in {s}.", "{s} houses the {x}.", "You will find the {x} in {s}."), "the place where the {x} is"),
    Bridge("department", ("The {x} belongs to {s}.", "{s} takes care of the {x}."), "the department that takes care of the {x}"),
    Bridge("project", ("The {x} is paid for by {s}.", "{s} pays for the {x}."), "the project that pays for the {x}"),
    Bridge("event", ("The {x} is shown at the {s}.", "At the {s} you can see the {x}."), "event where the {x} is shown"),
    Bridge("vehicle", ("The {x} travels in the {s}.", "We carry the {x} in the {s}."), "vehicle that carries the {x}"),
    Bridge("title", ("The {x} is described in {s}.", "{s} describes the {x}."), "the book that describes the {x}"),
)


def two_hop(world: World) -> list[Unit]:
    """A bridge sentence, a fact about its subject, and a question that names only the far end."""
    rng = world.rng
    facts = world.bank.facts
    if not facts:
        return []
    bridge = rng.choice(BRIDGES)
    blocks = [block for block in facts if block.slots["s"].kind == bridge.kind]
    if not blocks:
        return []
    units: list[Unit] = []
    block = rng.choice(blocks)
    for _ in range(rng.randrange(1, 4)):
        name, thing = world.fresh(bridge.kind), world.fresh(rng.choice(("thing", "room", "activity", "doc")))
        fact = Instance(block, world, {"s": name})
        fact.nouns = {}
        sentence = rng.choice(bridge.sentences).format(s=name, x=thing)
        units.append(_hop_unit(world, bridge, fact, sentence, thing))
    return units


def _hop_unit(world: World, bridge: Bridge, fact: Instance, sentence: str, thing: str) -> Unit:
    def make(rng: random.Random) -> list[Turn]:
        turn = fact.turn(pick_question(fact.block, "v", world, rng), rng)
        if turn is None:
            return []
        phrase = bridge.phrase.format(x=thing)
        question = turn.question.replace(fact.values["s"], phrase)
        question = question.replace("the the ", "the ").replace("The the ", "The ")
        return [Turn(question[0].upper() + question[1:], turn.answer)] if phrase in question else []

    unit = Unit(sentence, [make, fact.ask("v")], "two-hop", thing, subject=thing)
    if world.rng.random() < 0.7:
        unit.apart = [fact.text]
    else:
        unit.text = f"{sentence} {fact.text}"
    return unit


class Scale(NamedTuple):
    """An attribute to compare: statements, questions for the largest and the smallest of two and of many."""

    low: int
    high: int
    unit: str
    sentences: tuple[str, ...]
    more: tuple[str, ...]
    less: tuple[str, ...]
    kind: str


SCALES = (
    Scale(2, 990, "kg", ("The {s} weighs {v}.", "With the {s} you lift {v}.", "{s}: {v}"), ("is heavier", "weighs more", "has the greater weight"), ("is lighter", "weighs less"), "thing"),
    Scale(2, 900, "euros", ("The {s} costs {v}.", "You pay {v} for the {s}.", "The price of the {s} is {v}."), ("costs more", "is more expensive", "has the higher price"), ("costs less", "is cheaper"), "thing"),
    Scale(2, 95, "years", ("{s} is {v} old.", "{s} turned {n} this spring.", "At {n}, {s} still comes every week."), ("is older", "has lived longer"), ("is younger",), "person"),
    Scale(2, 400, "people", ("The {s} holds {v}.", "There is room for {v} in the {s}.", "{v} fit into the {s}."), ("is bigger", "holds more people", "has room for more people"), ("is smaller", "holds fewer people"), "room"),
    Scale(5, 300, "minutes", ("The {s} takes {v}.", "Plan {v} for the {s}.", "The {s} lasts {v}."), ("takes longer", "lasts longer", "needs more time"), ("is shorter", "takes less time", "is over sooner"), "activity"),
    Scale(1900, 2030, "", ("The {s} was bought in {v}.", "We have had the {s} since {v}.", "The {s} dates from {v}."), ("is newer", "was bought later", "came later"), ("is older", "was bought first", "came earlier"), "thing"),
    Scale(1950, 2030, "", ("{s} joined us in {v}.", "In {v} {s} came to us.", "{s} has been here since {v}."), ("joined later", "came to us later"), ("joined first", "came to us earlier", "has been here longer"), "person"),
    Scale(2, 60, "points", ("{s} scored {v}.", "{s} ended with {v}.", "The judges gave {s} {v}."), ("scored more", "has more points", "did better"), ("scored less", "has fewer points"), "person"),
    Scale(3, 90, "km", ("The {s} is {v} away.", "It is {v} to the {s}.", "You walk {v} to get to the {s}."), ("is farther away", "is more distant"), ("is closer", "is nearer"), "room"),
    Scale(2, 800, "watts", ("The {s} uses {v}.", "{v} is what the {s} draws."), ("uses more power", "needs more electricity"), ("uses less power", "needs less electricity"), "thing"),
)


def comparison(world: World) -> list[Unit]:
    """Two to four subjects on one scale; who is ahead of whom, and who is last."""
    rng = world.rng
    scale = rng.choice(SCALES)
    count = rng.choice((2, 2, 3, 4))
    amounts = _spread(scale, count, rng)
    names = [world.fresh(scale.kind) for _ in range(count)]
    texts = []
    for name, amount in zip(names, amounts, strict=True):
        value = f"{amount} {scale.unit}".strip()
        text = rng.choice(scale.sentences).format(s=name, v=value, n=amount)
        texts.append(text[0].upper() + text[1:])
    together = rng.random() < 0.5
    unit = Unit(" ".join(texts) if together else texts[0], [_compare(scale, names, amounts)], "comparison", scale.kind)
    unit.apart = [] if together else texts[1:]
    unit.subject = names[0]
    return [unit]


def _spread(scale: Scale, count: int, rng: random.Random) -> list[int]:
    """Distinct numbers; at times close to each other."""
    if rng.random() < 0.5:
        middle = rng.randrange(scale.low, scale.high)
        low, high = max(scale.low, middle - 20), min(scale.high, middle + 20)
        return rng.sample(range(low, high + 1), count)
    return rng.sample(range(scale.low, scale.high), count)


def _compare(scale: Scale, names: list[str], amounts: list[int]) -> Ask:
    def make(rng: random.Random) -> list[Turn]:
        more = rng.random() < 0.5
        words = rng.choice(scale.more if more else scale.less)
        best = (max if more else min)
        the = "" if scale.kind == "person" else "the "
        if len(names) == 2 or rng.random() < 0.5:
            pair = rng.sample(range(len(names)), 2)
            winner = names[best(pair, key=lambda i: amounts[i])]
            a, b = the + names[pair[0]], the + names[pair[1]]
            which = "Who" if scale.kind == "person" else "Which"
            question = rng.choice((f"{which} {words}, {a} or {b}?", f"{which} {words}: {a} or {b}?", f"Of {a} and {b}, {which.lower()} {words}?", f"{a} or {b}: {which.lower()} {words}?"))
            return [Turn(style(question[0].upper() + question[1:], rng), the + winner)]
        listed = ", ".join(the + name for name in names[:-1]) + f" and {the}{names[-1]}"
        winner = names[best(range(len(names)), key=lambda i: amounts[i])]
        which = "Who" if scale.kind == "person" else "Which one"
        top = {"more": "most", "less": "least"}["more" if more else "less"]
        question = rng.choice((f"Out of {listed}, {which.lower()} {words} than all the others?", f"{which} of {listed} {words} than the rest?",
                               f"Compare {listed}. {which} {words} than the others (the {top})?"))
        return [Turn(question, the + winner)]

    return make


LISTS = (
    ("{s} is a member of the {x}.", "Who are the members of the {x}?", "person"),
    ("{s} has signed up for the {x}.", "Who has signed up for the {x}?", "person"),
    ("{s} helps with the {x}.", "Who helps with the {x}?", "person"),
    ("{s} is invited to the {x}.", "Which people are invited to the {x}?", "person"),
    ("The {x} includes the {s}.", "What does the {x} include?", "thing"),
    ("For the {x} you need the {s}.", "What do I need for the {x}?", "thing"),
    ("The {s} belongs to the {x}.", "What belongs to the {x}?", "thing"),
    ("{s} sponsors the {x}.", "Which companies sponsor the {x}?", "org"),
    ("The {x} has an office in {s}.", "In which towns does the {x} have an office?", "city"),
    ("The {x} stops in {s}.", "Where does the {x} stop?", "city"),
)
_JOINT = (
    ("The members of the {x} are {l}.", "Who are the members of the {x}?", "person"),
    ("{l} help with the {x}.", "Who helps with the {x}?", "person"),
    ("For the {x} you need {l}.", "What do I need for the {x}?", "thing"),
    ("Bring {l} to the {x}.", "What should I bring to the {x}?", "things"),
    ("The {x} comes with {l}.", "What comes with the {x}?", "things"),
    ("The {x} is sponsored by {l}.", "Who sponsors the {x}?", "org"),
    ("The {x} stops in {l}.", "Where does the {x} stop?", "city"),
    ("There are three kinds of tickets for the {x}: {l}.", "Which kinds of tickets are there for the {x}?", "group"),
    ("Please do not put {l} into the {x}.", "What must not go into the {x}?", "things"),
    ("The {x} is open to {l}.", "To whom is the {x} open?", "group"),
)


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"


def listing(world: World) -> list[Unit]:
    """Several holders of one property, in one sentence, as bullets or over the document."""
    rng = world.rng
    joint = rng.random() < 0.5
    sentence, ask, kind = rng.choice(_JOINT if joint else LISTS)
    what = world.fresh(rng.choice(("activity", "thing", "room")))
    the = "the " if kind == "thing" else ""
    count = rng.choice((2, 3, 3, 4))
    names = [the + world.fresh(kind) for _ in range(count)]
    question, answer = ask.format(x=what), _joined(names)
    asks: list[Ask] = [lambda r: [Turn(style(question, r), answer)]]
    if joint:
        text = sentence.format(x=what, l=answer)
        if rng.random() < 0.25:
            text = sentence.format(x=what, l=":").split(":")[0].strip().rstrip(".") + ":\n" + "\n".join(f"- {n}" for n in names)
        return [Unit(text[0].upper() + text[1:], asks, "list", what.capitalize(), subject=what)]
    lines = [sentence.format(s=name.removeprefix("the "), x=what) for name in names]
    lines = [line[0].upper() + line[1:] for line in lines]
    unit = Unit(" ".join(lines) if rng.random() < 0.6 else "\n".join(lines), asks, "list", what.capitalize(), subject=what)
    other = world.fresh("activity")
    unit.missing = [lambda r: [Turn(ask.format(x=other), NOT_STATED)]]
    return [unit]


def articled(units: list[Unit]) -> list[Unit]:
    """Fix `a`/`an` in all texts."""
    for unit in units:
        unit.text = articles(unit.text)
        unit.apart = [articles(text) for text in unit.apart]
    return units
