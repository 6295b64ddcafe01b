"""Choosing a label by a rubric. The answer is the label alone."""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from training.unit import Turn, Unit
from training.world import World


class Case(NamedTuple):
    """Something to judge: its text, and the index of the right label."""

    text: str
    right: int


class Rubric(NamedTuple):
    """Criteria in the order of the labels, and a maker of cases; `draw(rng)` may be called any number of times."""

    criteria: list[str]
    draw: Callable[[random.Random], Case]
    topic: str


LABEL_SETS: tuple[tuple[str, ...], ...] = (
    ("A", "B", "C", "D"), ("strong", "medium", "weak"), ("hire", "maybe", "no"), ("high", "medium", "low"), ("yes", "no"),
    ("pass", "fail"), ("accept", "revise", "reject"), ("urgent", "normal", "later"), ("1", "2", "3", "4"), ("gold", "silver", "bronze"),
    ("green", "yellow", "red"), ("good", "fair", "poor"), ("keep", "drop"), ("relevant", "irrelevant"), ("true", "false"),
    ("P1", "P2", "P3", "P4"), ("small", "large"), ("invite", "wait", "decline"), ("ok", "warning", "critical"), ("I", "II", "III"),
    ("positive", "negative"), ("class one", "class two", "class three"), ("top", "middle", "bottom"), ("shortlist", "reserve", "out"),
)
MEASURES = (
    ("score", "points", 0, 100), ("years of experience", "years", 0, 30), ("price", "euros", 5, 900), ("delay", "minutes", 0, 240),
    ("temperature", "degrees", 0, 120), ("weight", "kg", 1, 400), ("number of complaints", "complaints", 0, 40), ("age", "years", 1, 95),
    ("speed", "km/h", 5, 200), ("distance", "km", 1, 500), ("attendance", "people", 2, 300), ("result", "points", 0, 60),
    ("budget", "thousand euros", 1, 500), ("waiting time", "days", 0, 90), ("error rate", "per cent", 0, 100), ("stock", "boxes", 0, 500),
)
TOPICS: dict[str, tuple[str, ...]] = {
    "payment": ("My invoice shows the wrong amount.", "I was charged twice this month.", "The card was refused at the till.", "When will I get my refund?", "I need a receipt for the last payment."),
    "delivery": ("The parcel has not arrived yet.", "The courier left the box in the rain.", "My order was sent to the wrong street.", "Can you deliver on Saturday?", "The shipment is stuck at the border."),
    "login": ("I cannot log in any more.", "My password does not work.", "The account is locked.", "I never got the code for signing in.", "The reset link has expired."),
    "damage": ("The screen is cracked.", "One leg of the chair is broken.", "The glass came in pieces.", "There is a deep scratch on the lid.", "The handle fell off on the first day."),
    "praise": ("Thank you, everything was wonderful.", "Your staff were so kind to my mother.", "This is the best soup I have ever had.", "I will certainly come again.", "What a lovely evening it was."),
    "noise": ("The music next door is far too loud.", "I could not sleep because of the building site.", "The pump howls all night.", "People shout in the stairwell after midnight.", "The fan rattles terribly."),
    "staff": ("The man at the desk was very rude.", "Nobody greeted us.", "The waiter ignored our table.", "The guide knew nothing about the town.", "Your colleague hung up on me."),
    "food": ("The bread was stale.", "My soup was cold.", "There was a hair in the salad.", "The fish tasted odd.", "The menu has nothing without nuts."),
    "safety": ("A cable hangs loose over the stairs.", "I smelled gas in the cellar.", "The fire exit is blocked.", "The brakes of the van failed.", "There is ice on the ramp."),
    "opening hours": ("Are you open on Sunday?", "At what time do you close?", "Is the shop open over Easter?", "I stood before a locked door at noon.", "Do you open before eight?"),
    "cleaning": ("The towels were dirty.", "There is dust everywhere.", "The bin has not been emptied for a week.", "The bathroom smells.", "The windows are covered in stains."),
    "weather": ("It rained all day.", "The storm took the roof off.", "The road is under snow.", "It was far too hot in the tent.", "The fog did not lift until noon."),
    "job": ("I would like to apply for the post.", "My CV is attached.", "Do you have any vacancies?", "When will the interviews be held?", "I have worked as a cook for years."),
    "cancelling": ("Please cancel my order.", "I want to end my membership.", "I do not need the room any more.", "Take me off the list, please.", "I would like to withdraw from the course."),
}
GOOD = ("It works perfectly.", "I love it.", "Worth every penny.", "My family is delighted.", "I would buy it again at once.", "Excellent in every way.", "A real pleasure to use.", "It is better than I hoped.")
BAD = ("It broke after a day.", "I want my money back.", "A complete waste of money.", "I am very disappointed.", "Never again.", "It is useless.", "The worst purchase of my life.", "I regret buying it.")
PLAIN = ("It came on a Tuesday.", "It is the blue one.", "I bought it for my brother.", "The box was brown.", "It stands in the hall now.", "I read about it in the paper.", "We have had it for a month.", "My neighbour has one too.")


def _labels(count: int, world: World) -> list[str]:
    rng = world.rng
    if rng.random() < 0.25:
        return list(dict.fromkeys(world.values.stem() for _ in range(count + 2)))[:count]
    fitting = [labels for labels in LABEL_SETS if len(labels) >= count]
    labels = list(rng.choice(fitting)[:count])
    if rng.random() < 0.4:
        rng.shuffle(labels)
    if rng.random() < 0.15:
        labels = [label.upper() for label in labels]
    return labels


def _bands(name: str, unit: str, cuts: Sequence[int], rng: random.Random) -> list[str]:
    """Criteria for falling bands above each cut and below the last."""
    style = int(rng.random() * 5)
    out = []
    for index, cut in enumerate(cuts):
        upper = cuts[index - 1] if index else None
        if style == 0 or upper is None:
            form = rng.choice(("the {n} is at least {c} {u}", "{c} {u} or more", "a {n} of {c} {u} or above", "if the {n} is {c} {u} or higher"))
            out.append(form.format(n=name, c=cut, u=unit))
        elif style <= 2:
            out.append(f"{cut} to {upper - 1} {unit}")
        else:
            out.append(rng.choice(("the {n} is at least {c} but below {h}", "from {c} up to but not including {h} {u}")).format(n=name, c=cut, h=upper, u=unit))
    last = rng.choice(("less than {c} {u}", "below {c} {u}", "anything lower", "everything else", "otherwise"))
    return [*out, last.format(c=cuts[-1], u=unit)]


def _value(cuts: Sequence[int], low: int, high: int, rng: random.Random) -> tuple[int, int]:
    """A number and its band; every band is as likely, and numbers close to a cut are frequent."""
    right = rng.randrange(len(cuts) + 1)
    top = high if right == 0 else cuts[right - 1] - 1
    bottom = low if right == len(cuts) else cuts[right]
    if rng.random() < 0.35:
        return rng.choice([n for n in (bottom, bottom + 1, top, top - 1) if bottom <= n <= top]), right
    return rng.randrange(bottom, top + 1), right


_MEASURED = ("{w}: {n} {v} {u}.", "The {n} of {w} is {v} {u}.", "For {w} we noted a {n} of {v} {u}.", "{w} has a {n} of {v} {u}.", "{w} came with a {n} of {v} {u}.", "{n}: {v} {u} ({w})", "{w}, {n} {v} {u}.", "With {w} it was {v} {u} ({n}).")


def _subject(world: World, rng: random.Random) -> str:
    return world.values.draw("person") if rng.random() < 0.5 else f"the {world.np_thing()}"


def _join(parts: list[str], rng: random.Random) -> str:
    rng.shuffle(parts)
    return " ".join(part[0].upper() + part[1:] for part in parts)


def threshold(world: World) -> Rubric:
    """Bands on one number among other numbers."""
    rng = world.rng
    name, unit, low, high = rng.choice(MEASURES)
    cuts = sorted(rng.sample(range(low + 2, high), rng.choice((1, 1, 2, 2, 3))), reverse=True)

    def draw(rng: random.Random) -> Case:
        value, right = _value(cuts, low, high, rng)
        other = rng.choice([m for m in MEASURES if m[0] != name and m[1] != unit])
        parts = [rng.choice(_MEASURED).format(w=_subject(world, rng), n=name, v=value, u=unit)]
        if rng.random() < 0.6:
            parts.append(f"The {other[0]} was {rng.randrange(other[2], other[3])} {other[1]}.")
        if rng.random() < 0.4:
            parts.append(rng.choice(PLAIN))
        return Case(_join(parts, rng), right)

    return Rubric(_bands(name, unit, cuts, rng), draw, name)


def topic(world: World) -> Rubric:
    """What a message is about."""
    rng = world.rng
    names = rng.sample(list(TOPICS), rng.randrange(2, 5))
    hint = rng.choice(("about {t}", "the message is about {t}", "anything to do with {t}", "{t}", "concerns {t}", "if it is about {t}"))
    criteria = [hint.format(t=name) for name in names]
    rest = rng.random() < 0.25
    if rest:
        criteria[-1] = rng.choice(("anything else", "everything else", "otherwise", "none of these"))

    def draw(rng: random.Random) -> Case:
        right = rng.randrange(len(names))
        pool = [n for n in TOPICS if n not in names[:-1]] if rest and right == len(names) - 1 else [names[right]]
        extra = [f"I bought the {world.np_thing()} in {world.values.draw('month')}.", f"My name is {world.values.draw('person')}.", f"My number is {world.values.draw('code')}."]
        return Case(_join([rng.choice(TOPICS[rng.choice(pool)]), *rng.sample(extra, rng.randrange(0, 3))], rng), right)

    return Rubric(criteria, draw, "topic")


_MENTIONED = ("We looked at the {}.", "The {} was mentioned.", "There were questions about the {}.", "Somebody asked for the {}.", "I know the {} well.", "Experience with the {}.", "The {} came up twice.", "Nobody liked the {}.")


def mentions(world: World) -> Rubric:
    """Whether words occur: both, one, none; or the first of several that applies."""
    rng = world.rng
    things = [world.fresh(rng.choice(("thing", "activity", "doc"))) for _ in range(2)]
    a, b = (f"the {thing}" for thing in things)
    both = rng.random() < 0.5
    if both:
        criteria = [rng.choice((f"mentions both {a} and {b}", f"{a} and {b} both occur")), rng.choice((f"mentions only one of {a} and {b}", "only one of them")), rng.choice((f"mentions neither {a} nor {b}", "neither of them", "otherwise"))]
    else:
        criteria = [f"mentions {a}", rng.choice((f"does not mention {a}", "otherwise"))]

    def draw(rng: random.Random) -> Case:
        right = rng.randrange(3) if both else rng.randrange(2)
        one = rng.randrange(2)
        present = [[0, 1], [one], []][right] if both else [[[0], [0, 1]][one], [[], [1]][one]][right]
        lines = [rng.choice(_MENTIONED).format(things[i]) for i in present]
        lines += [f"We also talked about the {world.np_thing()}." for _ in range(rng.randrange(0, 3))]
        lines += rng.sample(PLAIN, rng.randrange(0, 3))
        return Case(_join(lines or [rng.choice(PLAIN)], rng), right)

    return Rubric(criteria, draw, "content")


def opinion(world: World) -> Rubric:
    """Good, bad or mixed."""
    rng = world.rng
    words = [("the writer is happy", "the writer is pleased with it", "satisfied customer", "a good review"),
             ("the writer is unhappy", "the writer is disappointed", "dissatisfied customer", "a bad review"),
             ("both good and bad points", "mixed feelings", "partly good, partly bad")]
    order = [0, 1, 2] if rng.random() < 0.6 else [0, 1]
    rng.shuffle(order)
    criteria = [rng.choice(words[kind]) for kind in order]

    def draw(rng: random.Random) -> Case:
        right = rng.randrange(len(order))
        kind = order[right]
        pools = {0: [GOOD], 1: [BAD], 2: [GOOD, BAD]}[kind]
        lines = [rng.choice(pool) for pool in pools for _ in range(1 if kind == 2 else rng.randrange(1, 3))] + rng.sample(PLAIN, rng.randrange(0, 3))
        return Case(f"{rng.choice(('Review of', 'About'))} the {world.np_thing()}: {_join(lines, rng)}", right)

    return Rubric(criteria, draw, "opinion")


_TRAITS = (("has a driving licence", "has no driving licence"), ("speaks {lang}", "does not speak {lang}"), ("can start at once", "cannot start before summer"),
           ("has worked in a team", "has always worked alone"), ("lives nearby", "lives far away"), ("owns a {thing}", "does not own a {thing}"),
           ("has a certificate", "has no certificate"), ("is a member", "is not a member"), ("can work at night", "cannot work at night"),
           ("has read the {doc}", "has not read the {doc}"), ("knows the {room}", "does not know the {room}"), ("likes {mass}", "dislikes {mass}"))


def _trait(world: World, count: int) -> list[tuple[str, str]]:
    fill = {"lang": world.values.draw("language"), "thing": world.np_thing(), "doc": world.np_doc(), "room": world.np_room(), "mass": world.np_mass()}
    return [(yes.format(**fill), no.format(**fill)) for yes, no in world.rng.sample(_TRAITS, count)]


def conditions(world: World) -> Rubric:
    """Two named properties, each a yes or no, and a rule about them."""
    rng = world.rng
    (y1, n1), (y2, n2) = _trait(world, 2)
    counted = rng.random() < 0.5
    if counted:
        criteria = [f"{y1} and {y2}", rng.choice((f"{y1} or {y2}, but not both", "only one of the two")), rng.choice(("neither", "none of this"))]
    else:
        criteria = [y1, f"does not fit the first, but {y2}", "otherwise"]

    def draw(rng: random.Random) -> Case:
        right = rng.randrange(3)
        flip = rng.random() < 0.5
        first, second = [(True, True), (flip, not flip), (False, False)][right] if counted else [(True, flip), (False, True), (False, False)][right]
        name = world.values.draw("person")
        lines = [f"{name} {y1 if first else n1}.", f"{rng.choice(('The applicant', name))} {y2 if second else n2}."]
        if rng.random() < 0.5:
            lines.append(rng.choice(PLAIN))
        return Case(_join(lines, rng), right)

    return Rubric(criteria, draw, "applicant")


def profile(world: World) -> Rubric:
    """A number and a property together, as in a rubric for candidates."""
    rng = world.rng
    name, unit, low, high = rng.choice(MEASURES)
    cut = rng.randrange(low + 2, high)
    ((yes, no),) = _trait(world, 1)
    enough = rng.choice((f"{name} of at least {cut} {unit}", f"{name} is {cut} {unit} or more"))
    criteria = [f"{enough}, and {yes}", rng.choice(("only one of the two", f"one of these, but not both: {enough}; {yes}")), rng.choice(("neither", "otherwise", "none of this"))]

    def draw(rng: random.Random) -> Case:
        right = rng.randrange(3)
        flip = rng.random() < 0.5
        much, has = [(True, True), (flip, not flip), (False, False)][right]
        value = rng.randrange(cut, high + 1) if much else rng.randrange(low, cut)
        who = world.values.draw("person")
        return Case(_join([rng.choice(_MEASURED).format(w=who, n=name, v=value, u=unit), f"{who} {yes if has else no}.", *rng.sample(PLAIN, rng.randrange(0, 2))], rng), right)

    return Rubric(criteria, draw, "applicant")


KINDS: tuple[Callable[[World], Rubric], ...] = (threshold, threshold, threshold, topic, mentions, opinion, conditions, profile)


def written(labels: Sequence[str], criteria: Sequence[str], rng: random.Random) -> str:
    """The rubric in one of several styles."""
    pairs = list(zip(labels, criteria, strict=True))
    form = int(rng.random() * 6)
    if form == 0:
        return "\n".join(f"- {label}: {rule}" for label, rule in pairs)
    if form == 1:
        return "\n".join(f"{label} = {rule}" for label, rule in pairs)
    if form == 2:
        return "; ".join(f"{label} if {rule.removeprefix('if ')}" for label, rule in pairs) + "."
    if form == 3:
        return " ".join(f"If {rule.removeprefix('if ')}, answer {label}." for label, rule in pairs)
    if form == 4:
        return ", ".join(f"{label} ({rule})" for label, rule in pairs)
    if labels[0][0].isdigit():
        return "\n".join(f"{label} -> {rule}" for label, rule in pairs)
    return "\n".join(f"{index}. {label} - {rule}" for index, (label, rule) in enumerate(pairs, 1))


_NOUNS = ("text", "message", "case", "note", "entry", "application", "report", "candidate", "item", "row")


def make(world: World) -> list[Unit]:
    """A rubric with cases: it stands in the documents and the case in the question, or both in the question."""
    rng = world.rng
    rubric = rng.choice(KINDS)(world)
    labels = _labels(len(rubric.criteria), world)
    rules = written(labels, rubric.criteria, rng)
    noun, where = rng.choice(_NOUNS), rng.random()
    if where < 0.8:
        return [_ruled(world, rubric, labels, rules, noun)]
    return [_asked(rubric, labels, rules, noun)]


def _names(labels: Sequence[str]) -> str:
    return ", ".join(labels[:-1]) + f" or {labels[-1]}"


def _ruled(world: World, rubric: Rubric, labels: Sequence[str], rules: str, noun: str) -> Unit:
    """The rubric stands in the documents; any number of cases can be asked."""
    rng, ident = world.rng, world.values.draw("code")
    head = rng.choice((f"Rubric {ident}\n", f"How to label ({ident}):\n", f"Labels of rubric {ident}:\n"))
    forms = [f"Which label fits this {noun}?\n{{t}}", "{t}\nLabel?", f"Choose {_names(labels)} for this {noun}: {{t}}", f"Apply rubric {ident} to this {noun}: {{t}}", f"{noun.capitalize()}: {{t}}\nLabel:"]

    def ask(r: random.Random) -> list[Turn]:
        case = rubric.draw(r)
        text = r.choice(forms).replace("{t}", case.text)
        return [Turn(text if ident in text else f"Rubric {ident}. {text}", labels[case.right])]

    return Unit(head + rules, [ask], "label", f"Rubric {ident}")


def _asked(rubric: Rubric, labels: Sequence[str], rules: str, noun: str) -> Unit:
    """Rubric and case both stand in the question."""

    def ask(r: random.Random) -> list[Turn]:
        case = rubric.draw(r)
        text = r.choice((f"Choose a label for the text by this rubric.\n{rules}\n\nText: {case.text}", f"{case.text}\n\n{rules}\n\nWhich label?", f"Label the {noun} with {_names(labels)}.\nRubric:\n{rules}\n{noun.capitalize()}: {case.text}\nLabel:"))
        return [Turn(text, labels[case.right])]

    return Unit("", [ask], "label")
