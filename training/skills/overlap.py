"""Questions made from the words around an answer, for any sentence whatever.

The bank's own questions are few enough to be learnt by heart: a model trained on them alone answered all of those, but a
quarter less of phrasings it had not met. These questions share nothing but words with the statement, so what is left
to learn is to look for those words and to take the piece of the right kind next to them.
"""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

import random
import re

WH: dict[str, tuple[str, ...]] = {
    "person": ("Who", "Who", "Which person", "Whom", "What is the name of the person:"),
    "first_name": ("Who", "Which person"),
    "role": ("Who", "Which person"),
    "org": ("Which company", "Who", "Which firm"),
    "place": ("Where", "In which place", "Where exactly"),
    "city": ("Where", "In which town"),
    "time": ("When", "At what time", "What time", "By what time"),
    "date": ("When", "On which date", "By when", "What date"),
    "weekday": ("On which day", "When", "What day"),
    "month": ("In which month", "When"),
    "year": ("In which year", "When"),
    "duration": ("How long", "For how long", "How much time", "After what time", "How often"),
    "money": ("How much", "What amount", "How much money", "What price"),
    "count": ("How many", "What number of", "How many"),
    "percent": ("What percentage", "How much", "What share"),
    "colour": ("What colour", "Which colour"),
    "weight": ("How heavy", "What weight", "How much"),
    "length": ("How long", "How far", "What length"),
    "temperature": ("What temperature", "How warm", "At how many degrees"),
    "phone": ("What phone number", "Which number"),
    "extension": ("Which extension", "What number"),
    "email": ("Which address", "What e-mail address", "Where"),
    "code": ("Which code", "What code"),
    "ordinal": ("Which", "Which one"),
}
_LEADS = (
    (re.compile(r"(?:in|on|at|behind|under|next|near|outside|beside|opposite|from|to|into) "), ("Where", "Where", "In which place", "Where exactly")),
    (re.compile(r"(?:because|since|as|so that|for fear|in order|due) "), ("Why", "Why", "For what reason", "What is the reason:")),
    (re.compile(r"(?:by|with|via|through|using) "), ("How", "In what way", "By what means")),
    (re.compile(r"(?:if|unless|when|once|after|before|until|during|while|every|each) "), ("When", "In which case", "Under what condition")),
)
STOP = frozenset("""a an the and or but of to in on at by for from with without as is are was were be been being it its they them their
he she his her him we us our you your i my me this that these those there here not no nor so if than then too very will would shall should may might
can could must do does did has have had one who whom which what when where why how all any each every some more most other such only own same per up
down out off over under again once also just about into through during before after above below between both few because while until still even""".split())
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])|\n+|;\s")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*[A-Za-z]|[A-Za-z]")


def sentence_with(text: str, value: str) -> str:
    """The sentence or line that holds a value; empty when it stands in none or several."""
    found = [part.strip() for part in _SENTENCE.split(text) if value.lower() in part.lower()]
    return found[0] if len(found) == 1 else ""


def question_words(kind: str, value: str, rng: random.Random) -> str:
    """A question word that asks for a value."""
    if kind in WH:
        return rng.choice(WH[kind])
    for lead, words in _LEADS:
        if lead.match(value.lower()):
            return rng.choice(words)
    return rng.choice(("What", "What", "Which", "What exactly"))


def overlap_question(text: str, value: str, kind: str, title: str, rng: random.Random) -> str | None:
    """A question for `value` in the words of its sentence, or None when the sentence says too little."""
    sentence = sentence_with(text, value)
    at = sentence.lower().find(value.lower())
    if at < 0 or len(sentence) > 260:
        return None
    before, after = sentence[:at], sentence[at + len(value) :]
    content = [w for w in _WORD.findall(f"{before} {after}") if w.lower() not in STOP and len(w) > 2]
    wh = question_words(kind, value, rng)
    form = rng.random()
    if len(content) < 2 or form < 0.12:
        words = " ".join([title.lower(), *content[:3]]).strip()
        return f"{wh} {words}?" if title and words else None
    if form < 0.6:
        keep = sorted(rng.sample(range(len(content)), min(len(content), rng.randrange(2, 6))))
        chosen = [content[i] for i in keep]
        if rng.random() < 0.25:
            rng.shuffle(chosen)
        lead = f"{title.lower()}: " if title and rng.random() < 0.2 else ""
        glue = rng.choice((" ", " ", ", ", " the "))
        return rng.choice((f"{lead}{wh} {glue.join(chosen)}?", f"{wh} {' '.join(chosen)}?", f"{' '.join(chosen)}: {wh.lower()}?", f"{' '.join(chosen)} {wh.lower()}"))
    low = wh[0].lower() + wh[1:]
    rest = after.rstrip(" .!?")
    if form < 0.8:
        return f"{before}{low}{rest}?".strip()
    clause = f"{before.strip()} {rest.strip()}".strip(" ,.-")
    return f"{wh} {clause[:1].lower()}{clause[1:]}?" if clause else None


def noisy(question: str, protected: str, rng: random.Random) -> str:
    """The question with a content word dropped, replaced by an unknown word or misspelt; `protected` words stay."""
    words = question.split(" ")
    places = [i for i, w in enumerate(words) if i and len(w) > 3 and w.lower().strip("?.,'") not in STOP and w.strip("?.,'") not in protected]
    if len(places) < 3:
        return question
    place = rng.choice(places)
    word, roll = words[place], rng.random()
    if roll < 0.4:
        del words[place]
    elif roll < 0.75:
        letters = "".join(rng.choice("abdefgiklmnoprstu") for _ in range(rng.randrange(3, 7)))
        words[place] = letters + (word[-1] if not word[-1].isalpha() else "")
    else:
        spot = rng.randrange(1, len(word) - 1)
        words[place] = word[: spot - 1] + word[spot] + word[spot - 1] + word[spot + 1 :]
    return " ".join(words)
