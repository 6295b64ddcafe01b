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
    """Something to judge: its text, the criteria in order of the labels, and the index of the right one."""

    text: str
    criteria: list[str]
    right: int
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


def threshold(world: World) -> Case:
    """Bands on one number among other numbers."""
    rng = world.rng
    name, unit, low, high = rng.choice(MEASURES)
    cuts = sorted(rng.sample(range(low + 1, high), rng.choice((1, 1, 2, 2, 3))), reverse=True)
    value = rng.randrange(low, high + 1)
    if rng.random() < 0.4:
        value = min(high, max(low, rng.choice(cuts) + rng.choice((-3, -1, 0, 1, 4))))
    right = next((i for i, cut in enumerate(cuts) if value >= cut), len(cuts))
    who = world.values.draw("person") if rng.random() < 0.5 else f"the {world.np_thing()}"
    sentence = rng.choice(("{w}: {n} {v} {u}.", "The {n} of {w} is {v} {u}.", "For {w} we noted a {n} of {v} {u}.", "{w} has a {n} of {v} {u}.", "{w} came with a {n} of {v} {u}."))
    other = rng.choice([m for m in MEASURES if m[0] != name])
    noise = f"The {other[0]} was {rng.randrange(other[2], other[3])} {other[1]}."
    text = sentence.format(w=who, n=name, v=value, u=unit)
    parts = [text, noise, rng.choice(PLAIN)]
    rng.shuffle(parts)
    return Case(" ".join(p[0].upper() + p[1:] for p in parts[: 1 + (text in parts[:1]) * rng.randrange(0, 3)] if p) if text == parts[0] else " ".join(p[0].upper() + p[1:] for p in parts), _bands(name, unit, cuts, rng), right, name)


def topic(world: World) -> Case:
    """What a message is about."""
    rng = world.rng
    names = rng.sample(list(TOPICS), rng.randrange(2, 5))
    right = rng.randrange(len(names))
    sentence = rng.choice(TOPICS[names[right]])
    hint = rng.choice(("about {t}", "the message is about {t}", "anything to do with {t}", "{t}", "concerns {t}", "if it is about {t}"))
    criteria = [hint.format(t=name) for name in names]
    if rng.random() < 0.25:
        criteria[-1] = rng.choice(("anything else", "everything else", "otherwise", "none of these"))
        if right == len(names) - 1:
            sentence = rng.choice(TOPICS[rng.choice([n for n in TOPICS if n not in names[:-1]])])
    extra = [f"I bought the {world.np_thing()} in {world.values.draw('month')}.", f"My name is {world.values.draw('person')}.", f"My number is {world.values.draw('code')}."]
    parts = [sentence, *rng.sample(extra, rng.randrange(0, 3))]
    rng.shuffle(parts)
    return Case(" ".join(parts), criteria, right, "topic")


def mentions(world: World) -> Case:
    """Whether words occur: both, one, none; or the first of several that applies."""
    rng = world.rng
    things = [world.fresh(rng.choice(("thing", "activity", "doc"))) for _ in range(2)]
    present = [rng.random() < 0.5 for _ in things]
    lines = [rng.choice(("We looked at the {}.", "The {} was mentioned.", "There were questions about the {}.", "Somebody asked for the {}.", "I know the {} well.", "Experience with the {}.")).format(t)
             for t, there in zip(things, present, strict=True) if there]
    lines += [f"We also talked about the {world.np_thing()}." for _ in range(rng.randrange(0, 3))]
    lines += rng.sample(PLAIN, rng.randrange(0, 3))
    rng.shuffle(lines)
    text = " ".join(lines) or rng.choice(PLAIN)
    a, b = (f"the {thing}" for thing in things)
    if rng.random() < 0.5:
        criteria = [rng.choice((f"mentions both {a} and {b}", f"{a} and {b} both occur")), rng.choice((f"mentions only one of {a} and {b}", "only one of them")), rng.choice((f"mentions neither {a} nor {b}", "neither of them", "otherwise"))]
        right = 2 - sum(present)
    else:
        criteria = [f"mentions {a}", f"does not mention {a}"]
        right = 0 if present[0] else 1
    return Case(text, criteria, right, "content")


def opinion(world: World) -> Case:
    """Good, bad or mixed."""
    rng = world.rng
    kind = rng.randrange(3)
    thing = world.np_thing()
    pools = {0: [GOOD], 1: [BAD], 2: [GOOD, BAD]}[kind]
    lines = [rng.choice(pool) for pool in pools for _ in range(1 if kind == 2 else rng.randrange(1, 3))] + rng.sample(PLAIN, rng.randrange(0, 3))
    rng.shuffle(lines)
    words = [("the writer is happy", "the writer is pleased with it", "satisfied customer", "a good review"),
             ("the writer is unhappy", "the writer is disappointed", "dissatisfied customer", "a bad review"),
             ("both good and bad points", "mixed feelings", "partly good, partly bad")]
    criteria = [rng.choice(options) for options in words]
    if kind < 2 and rng.random() < 0.5:
        criteria = criteria[:2]
    order = list(range(len(criteria)))
    rng.shuffle(order)
    return Case(f"{'Review of' if rng.random() < 0.5 else 'About'} the {thing}: {' '.join(lines)}", [criteria[i] for i in order], order.index(kind), "opinion")


def conditions(world: World) -> Case:
    """Two named properties, each a yes or no, and a rule about them."""
    rng = world.rng
    pairs = (("has a driving licence", "has no driving licence"), ("speaks {lang}", "does not speak {lang}"), ("can start at once", "cannot start before summer"),
             ("has worked in a team", "has always worked alone"), ("lives nearby", "lives far away"), ("owns a {thing}", "does not own a {thing}"),
             ("has a certificate", "has no certificate"), ("is a member", "is not a member"), ("can work at night", "cannot work at night"))
    fill = {"lang": world.values.draw("language"), "thing": world.np_thing()}
    (y1, n1), (y2, n2) = ((a.format(**fill), b.format(**fill)) for a, b in rng.sample(pairs, 2))
    has = (rng.random() < 0.5, rng.random() < 0.5)
    name = world.values.draw("person")
    lines = [f"{name} {y1 if has[0] else n1}.", f"{rng.choice(('The applicant', name))} {y2 if has[1] else n2}.", rng.choice(PLAIN)]
    rng.shuffle(lines)
    if rng.random() < 0.5:
        criteria = [f"{y1} and {y2}", rng.choice((f"{y1} or {y2}, but not both", "only one of the two")), rng.choice(("neither", "none of this"))]
        right = 2 - sum(has)
    else:
        criteria = [y1, f"does not fit the first, but {y2}", "otherwise"]
        right = 0 if has[0] else 1 if has[1] else 2
    return Case(" ".join(lines), criteria, right, "applicant")


CASES: tuple[Callable[[World], Case], ...] = (threshold, threshold, topic, mentions, opinion, conditions)


def rubric(labels: Sequence[str], case: Case, rng: random.Random) -> str:
    """The rubric in one of several styles."""
    pairs = list(zip(labels, case.criteria, strict=True))
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
    return "\n".join(f"{index}. {label} - {rule}" for index, (label, rule) in enumerate(pairs, 1)) if not labels[0][0].isdigit() else "\n".join(f"{label} -> {rule}" for label, rule in pairs)


def make(world: World) -> Unit:
    """A case and its rubric; either of them in the documents, the other in the question."""
    rng = world.rng
    case = rng.choice(CASES)(world)
    labels = _labels(len(case.criteria), world)
    rules = rubric(labels, case, rng)
    answer = labels[case.right]
    names = ", ".join(labels[:-1]) + f" or {labels[-1]}"
    noun = rng.choice(("text", "message", "case", "note", "entry", "application", "report"))
    ident = world.values.draw("code")
    where = rng.random()
    if where < 0.45:
        ask = rng.choice((f"Choose a label for {noun} {ident}:\n{rules}\nAnswer with the label alone.", f"Rate {noun} {ident} by this rubric.\n{rules}", f"Which label fits {noun} {ident}?\n{rules}\nLabel:",
                          f"Label {noun} {ident} ({names}).\n{rules}", f"{rules}\nWhich of {names} applies to {noun} {ident}?"))
        body = rng.choice((f"{noun.capitalize()} {ident}: {case.text}", f"[{ident}] {case.text}", f"{noun} {ident}\n{case.text}"))
        return Unit(body, [lambda r: [Turn(ask, answer)]], "label", f"{noun} {ident}".capitalize())
    if where < 0.8:
        ask = rng.choice((f"Which label fits this {noun}?\n{case.text}", f"{case.text}\nLabel?", f"Choose {names} for this {noun}: {case.text}", f"Apply rubric {ident} to this {noun}: {case.text}", f"{noun.capitalize()}: {case.text}\nLabel:"))
        head = rng.choice((f"Rubric {ident}\n", f"How to label ({ident}):\n", f"Labels of rubric {ident}:\n"))
        if ident not in ask:
            ask = f"Rubric {ident}. {ask}"
        return Unit(head + rules, [lambda r: [Turn(ask, answer)]], "label", f"Rubric {ident}")
    ask = rng.choice((f"Choose a label for the text by this rubric.\n{rules}\n\nText: {case.text}", f"{case.text}\n\n{rules}\n\nWhich label?", f"Label the {noun} with {names}.\nRubric:\n{rules}\n{noun.capitalize()}: {case.text}\nLabel:"))
    return Unit("", [lambda r: [Turn(ask, answer)]], "label")
