"""JSON extraction of entities and relations from a stretch of conversation."""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

import json
import random
from typing import NamedTuple

from training.unit import Turn, Unit
from training.world import World


class Relation(NamedTuple):
    """Names of a relation, kinds of its ends and sentences; `first` has the subject speak."""

    names: tuple[str, ...]
    subject: str
    object: str
    sentences: tuple[str, ...]
    first: tuple[str, ...] = ()


RELATIONS = (
    Relation(("works_for", "works_at", "employed_by"), "person", "org", ("{s} works for {o}.", "{s} has a job at {o} now.", "Did you know that {s} is with {o}?", "{o} has taken on {s}.", "{s} started at {o} last week."), ("I work for {o}.", "I have been at {o} for a year.", "My new employer is {o}.")),
    Relation(("lives_in", "resides_in", "home_town"), "person", "city", ("{s} lives in {o}.", "{s} has moved to {o}.", "{s} has a flat in {o}.", "{o} is where {s} lives."), ("I live in {o}.", "I moved to {o} in spring.", "My flat is in {o}.")),
    Relation(("manages", "leads", "runs"), "person", "project", ("{s} manages {o}.", "{s} leads {o}.", "{o} is run by {s}.", "{s} is in charge of {o}."), ("I manage {o}.", "I am in charge of {o}.", "{o} is led by me.")),
    Relation(("works_on", "contributes_to"), "person", "project", ("{s} works on {o}.", "{s} is busy with {o}.", "{s} writes code for {o}."), ("I am working on {o}.", "I spend my days on {o}.")),
    Relation(("reports_to", "has_boss"), "person", "person", ("{s} reports to {o}.", "{o} is the boss of {s}.", "{s} has {o} as a boss."), ("I report to {o}.", "My boss is {o}.")),
    Relation(("married_to", "spouse"), "person", "person", ("{s} is married to {o}.", "{s} has married {o}."), ("I am married to {o}.",)),
    Relation(("knows", "friend_of"), "person", "person", ("{s} is a friend of {o}.", "{s} knows {o} well.", "{s} went to school with {o}."), ("I know {o} well.", "{o} is an old friend of mine.")),
    Relation(("owns", "has"), "person", "product", ("{s} owns a {o}.", "{s} has got a {o}.", "The {o} belongs to {s}."), ("I own a {o}.", "I have a {o} at home.")),
    Relation(("bought", "purchased"), "person", "product", ("{s} bought a {o}.", "{s} has just paid for a {o}.", "A {o} was bought by {s}."), ("I bought a {o}.", "I got myself a {o}.")),
    Relation(("makes", "produces", "manufacturer_of"), "org", "product", ("{o} is made by {s}.", "{s} makes the {o}.", "{s} has brought out the {o}.")),
    Relation(("based_in", "headquartered_in", "located_in"), "org", "city", ("{s} is based in {o}.", "{s} has its head office in {o}.", "The head office of {s} is in {o}.")),
    Relation(("funds", "sponsors", "pays_for"), "org", "project", ("{s} pays for {o}.", "{o} is funded by {s}.", "The money for {o} comes from {s}.")),
    Relation(("acquired", "took_over"), "org", "org", ("{s} has taken over {o}.", "{o} was acquired by {s}.", "{s} bought {o}.")),
    Relation(("visited", "travelled_to"), "person", "city", ("{s} was in {o} last week.", "{s} went to {o}.", "{s} visited {o}."), ("I was in {o} last week.", "I went to {o}.")),
    Relation(("speaks",), "person", "language", ("{s} speaks {o}.", "{s} is fluent in {o}.", "{s} learnt {o} as a child."), ("I speak {o}.", "I am learning {o}.")),
    Relation(("attends", "goes_to"), "person", "event", ("{s} is going to the {o}.", "{s} has a ticket for the {o}.", "{s} will be at the {o}."), ("I am going to the {o}.", "I have a ticket for the {o}.")),
    Relation(("held_in", "takes_place_in"), "event", "city", ("The {s} is held in {o}.", "The {s} takes place in {o}.", "{o} hosts the {s}.")),
    Relation(("wrote", "author_of"), "person", "title", ("{s} wrote {o}.", "{o} is by {s}.", "{s} is the author of {o}."), ("I wrote {o}.",)),
    Relation(("uses", "relies_on"), "project", "product", ("{s} uses the {o}.", "{s} runs on the {o}.", "We use the {o} for {s}.")),
    Relation(("member_of", "belongs_to"), "person", "department", ("{s} is in {o}.", "{s} has joined {o}.", "{o} has a new member, {s}."), ("I am in {o}.", "I have joined {o}.")),
)
TYPE_NAMES = {
    "person": ("person", "person", "people", "human"), "org": ("org", "organisation", "company", "organization"), "city": ("city", "town", "location", "place"),
    "project": ("project",), "product": ("product", "device"), "language": ("language",), "event": ("event",), "title": ("book", "work", "title"), "department": ("department", "team", "unit"),
}
CHAT = ("How was your weekend?", "Not bad, thanks.", "Really?", "I had no idea.", "That is good to hear.", "Let us talk about it later.", "Anyway, it is raining again.", "Shall we get a coffee?", "Sure.", "By the way, lunch is at twelve.",
        "I see.", "What else is new?", "Nothing much.", "Sorry, I have to run.", "Same here.", "That was quick.", "Good morning!", "Hello again.", "Yes, I heard that.", "Well, well.")


class Found(NamedTuple):
    """One relation stated in the conversation: the relation and its two ends."""

    relation: Relation
    subject: str
    object: str


def _cast(world: World) -> dict[str, list[str]]:
    """A few names of each kind, so that entities recur."""
    counts = {"person": 3, "org": 2, "city": 2, "project": 2, "product": 2, "language": 1, "event": 1, "title": 1, "department": 2}
    return {kind: [world.values.draw(kind) for _ in range(count)] for kind, count in counts.items()}


def _talk(world: World, cast: dict[str, list[str]], count: int) -> tuple[list[str], list[Found]]:
    """The lines of a conversation and the relations in their order."""
    rng = world.rng
    speakers = [name.split()[0] if rng.random() < 0.5 else name for name in (world.values.draw("person"), world.values.draw("person"))]
    chosen = rng.sample(RELATIONS, min(len(RELATIONS), rng.randrange(2, 5)))
    lines: list[str] = []
    found: list[Found] = []
    for _ in range(4 * count):
        if len(found) >= count:
            break
        speaker = speakers[len(lines) % 2]
        said = [rng.choice(CHAT)] if rng.random() < 0.4 else []
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            relation = rng.choice(chosen)
            mine = bool(relation.first) and rng.random() < 0.25
            subject = speaker if mine else rng.choice(cast[relation.subject])
            other = rng.choice(cast[relation.object])
            if subject == other or any(f.subject == subject and f.object == other for f in found):
                continue
            said.append(rng.choice(relation.first if mine else relation.sentences).format(s=subject, o=other))
            found.append(Found(relation, subject, other))
        if rng.random() < 0.3:
            said.append(rng.choice(CHAT))
        if said:
            text = " ".join(said)
            lines.append(f"{speaker}: {text[0].upper()}{text[1:]}")
        else:
            lines.append(f"{speaker}: {rng.choice(CHAT)}")
    return lines, found


def answer_json(found: list[Found], types: dict[str, str], names: dict[int, str], text: str) -> str:
    """Compact JSON of the listed types and relations, in order of appearance."""
    kept = [f for f in found if id(f.relation) in names]
    kinds: dict[str, str] = {}
    for item in found:
        for name, kind in ((item.subject, item.relation.subject), (item.object, item.relation.object)):
            if kind in types:
                kinds.setdefault(name, types[kind])
    ordered = sorted(kinds, key=lambda name: text.find(name))
    entities = [{"name": name, "type": kinds[name]} for name in ordered]
    relations = [{"subject": f.subject, "relation": names[id(f.relation)], "object": f.object} for f in kept]
    return json.dumps({"entities": entities, "relations": relations}, separators=(",", ":"), ensure_ascii=False)


def _request(types: list[str], relations: list[str], which: str, rng: random.Random) -> str:
    t, r = ", ".join(types), ", ".join(relations)
    return rng.choice((
        f"Extract the entities and relations from {which}. Entity types: {t}. Relations: {r}. Answer in JSON.",
        f"List all entities ({t}) and relations ({r}) of {which} as JSON.",
        f"Extract entities and relations of {which} as JSON.\nTypes: {t}\nRelations: {r}",
        f"Which entities and relations are in {which}?\nentity types: {t}\nrelation types: {r}\nReturn JSON.",
        f"JSON extraction from {which}. Entities: {t}. Relations: {r}.",
        f"Read {which} and return JSON with the entities of the types {t} and the relations {r}.",
    ))


NOUNS = ("conversation", "conversation", "call", "transcript", "chat", "episode", "interview")


def make(world: World, count: int = 0) -> Unit | None:
    """A conversation and requests. A document holds one, or several that are told apart by numbers."""
    rng = world.rng
    if "talk" in world.used:
        return None
    noun = rng.choice(NOUNS)
    name = f"{noun} {world.values.draw('code')}" if world.numbered else ""
    if not world.numbered:
        world.used.add("talk")
    cast = _cast(world)
    lines, found = _talk(world, cast, count or rng.randrange(1, 9))
    names = {id(rel): rng.choice(rel.names) for rel in RELATIONS}
    text = ("\n" if rng.random() < 0.8 else "\n\n").join(lines)

    def ask(r: random.Random) -> list[Turn]:
        stated = {f.relation for f in found}
        wanted = [rel for rel in RELATIONS if (rel in stated and r.random() < 0.9) or (rel not in stated and r.random() < 0.08)]
        wanted = wanted or [r.choice(RELATIONS)]
        r.shuffle(wanted)
        kinds = {kind for rel in wanted for kind in (rel.subject, rel.object)}
        if r.random() < 0.2:
            kinds |= {r.choice(list(TYPE_NAMES))}
        types = {kind: r.choice(TYPE_NAMES[kind]) for kind in sorted(kinds)}
        shown = {id(rel): names[id(rel)] for rel in wanted}
        inline = r.random() < 0.2
        which = f"this {noun}" if inline else name or f"the {noun}"
        question = _request(list(types.values()), list(dict.fromkeys(shown.values())), which, r)
        if inline:
            question = f"{question}\n\n{text}" if r.random() < 0.5 else f"{text}\n\n{question}"
        return [Turn(question, answer_json(found, types, shown, text))]

    head = f"{name[0].upper()}{name[1:]}\n" if name else ""
    return Unit(head + text, [ask], "extraction", "" if name else noun.capitalize())
