"""Invented applicants and a rubric to score them by, for demonstrations and measurements: the same
for the same seed, of any number and length."""

from __future__ import annotations

import random
from collections.abc import Iterator

LABELS = ("A", "B", "C", "D", "E")
COLUMNS = ("name", "profile")
FIRST = (
    "Ada",
    "Ben",
    "Cora",
    "Dan",
    "Edith",
    "Frank",
    "Grace",
    "Hugh",
    "Ines",
    "Jack",
    "Kate",
    "Leo",
)
LAST = ("Archer", "Brook", "Carver", "Dale", "Ellis", "Fisher", "Grant", "Hale", "Ives", "Jarvis")
TRADES = ("joiner", "welder", "glazier", "upholsterer", "painter", "turner", "carver", "polisher")
TOWNS = ("Leeds", "Derby", "Exeter", "Kendal", "Lincoln", "Oxford", "Preston", "Truro", "Wells")
MONTHS = ("January", "March", "April", "May", "July", "September", "October", "November")
MORE = (
    "has led a small team",
    "has worked alone for most of that time",
    "asks for a place near the door",
    "drives a van",
    "has trained two apprentices",
    "keeps good records of every order",
    "was late with the last three orders",
    "speaks well with visitors",
    "has mended chairs since school",
    "has not worked with power tools",
    "knows the safety rules by heart",
    "wants to work four days a week",
)
CRITERIA = (
    "Years in the trade count most: below two years is weak, from ten years on is strong.",
    "An applicant who has trained others is worth more than one who has always worked alone.",
    "Late orders weigh heavily, because customers wait for them and do not come back.",
    "Good records save the office an hour a day; give credit for them.",
    "Knowing the safety rules is required; nobody works at the large saw without them.",
    "A van licence is of use, but it can be learned and decides nothing.",
    "The town matters only where the applicant cannot move before the month they name.",
    "Four days a week are as good as five for a trade that is short of hands.",
    "Speaking well with visitors is worth a little more in the front shop than in the back.",
    "What the applicant asks for is no reason against them.",
)


def rubric(words: int, run: str = "") -> str:
    """About so many words. run: stands first, so that no other run has read this beginning."""
    lines = [f"Rubric {run}".strip() + ": rate each applicant to the workshop from A to E."]
    count, number = len(lines[0].split()), 0
    while count < words:
        text = f"{number + 1}. {CRITERIA[number % len(CRITERIA)]}".split()[: words - count]
        lines.append(" ".join(text))
        count, number = count + len(text), number + 1
    return "\n".join(lines)


def applicants(begin: int, end: int, words: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Name and profile of applicants [begin, end), each profile of so many words; no two names are
    the same."""
    for i in range(begin, end):
        rng = random.Random(f"{seed} {i}")
        name = f"{rng.choice(FIRST)} {rng.choice(LAST)} {i}"
        profile = (
            f"{rng.choice(TRADES)}, {rng.randint(1, 30)} years, {rng.choice(TOWNS)}, "
            f"from {rng.choice(MONTHS)}"
        ).split()
        while len(profile) < words:
            profile += f"and {rng.choice(MORE)}".split()
        yield name, " ".join(profile[:words])
