"""How a document looks: headings, bullets, line widths, paths, instructions."""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

import random
import re
import textwrap

from training.world import World

INSTRUCTION = (
    "Answer the question from the documents below, in as few words as possible. "
    "If the documents do not say, answer: not stated"
)
"""The product's own instruction; most of the training uses exactly this."""
OTHER_INSTRUCTIONS = (
    "You answer questions about the following documents. Be brief. Say \"not stated\" when they do not contain the answer.",
    "Use only the text below. Reply with the shortest possible answer, or: not stated",
    "Here are some documents. Answer from them in a few words. If the answer is missing, write: not stated",
    "Answer questions from the context. Keep it short. If the context does not say, answer: not stated",
    "You are a helpful assistant. Answer from the documents only. Unknown: not stated",
    "Read the documents and give short answers. If something is not mentioned, say: not stated",
    "Context:",
    "",
)
_FOLDERS = ("handbook", "docs", "guide", "rules", "notes", "faq", "products", "people", "minutes", "mail", "policies", "club", "office", "manual")
_TITLES = ("Handbook", "Guide", "Notes", "House rules", "FAQ", "Information", "Good to know", "What you need to know", "Overview", "Minutes", "Leaflet", "Welcome", "For new people", "About us", "Practical matters", "Rules", "News")
_MARK = ("**{}**", "*{}*", "`{}`", "__{}__")


def path(title: str, rng: random.Random) -> str:
    """An invented file name for a section."""
    slug = re.sub(r"[^a-z0-9]+", rng.choice("-_"), title.lower()).strip("-_")[:30] or "notes"
    if rng.random() < 0.1:
        slug = f"{rng.randrange(1, 30):02d}-{slug}"
    folder = f"{rng.choice(_FOLDERS)}/" if rng.random() < 0.75 else ""
    return f"{folder}{slug}.{rng.choice(('md', 'md', 'md', 'txt', 'rst', 'html'))}"


def header(title: str, style: int, rng: random.Random) -> str:
    """The line above a section; style 0 is the product's own."""
    if style == 0:
        return f"[{path(title, rng)}]\n"
    if style == 1:
        return f"# {title}\n"
    if style == 2:
        return f"--- {path(title, rng)} ---\n"
    if style == 3:
        return f"{title}\n{'=' * len(title)}\n"
    if style == 4:
        return f"<document name=\"{path(title, rng)}\">\n"
    return ""


def heading(title: str, rng: random.Random, style: int) -> str:
    """A heading inside a section."""
    title = title.strip() or "Notes"
    if style == 0:
        return f"## {title}\n"
    if style == 1:
        return f"### {title}\n\n"
    if style == 2:
        return f"{title}\n{'-' * len(title)}\n"
    if style == 3:
        return f"{title.upper()}\n"
    if style == 4:
        return f"**{title}** "
    return f"{rng.randrange(1, 20)}. {title}\n"


def section_title(rng: random.Random) -> str:
    """A title that says little."""
    return rng.choice(_TITLES)


def greeting(world: World) -> str:
    """A first sentence of a section, or nothing."""
    rng = world.rng
    if rng.random() < 0.7:
        return ""
    org = world.values.draw("org")
    return rng.choice((
        f"Welcome to {org}.", f"This is the handbook of {org}.", f"These notes are for everybody at {org}.",
        "Dear all,", f"Minutes of the meeting of {world.values.draw('date')}.", f"Last changed on {world.values.draw('date')}.",
        f"From: {world.values.draw('person')}\nTo: {world.values.draw('person')}", f"The following applies at {org} in {world.values.draw('city')}.",
        f"Version {world.values.draw('version')}, {world.values.draw('date')}.",
    ))


def wrap(text: str, width: int) -> str:
    """Hard-wrap the prose lines; lists, tables and headings stay as they are."""
    lines = []
    for line in text.split("\n"):
        if len(line) <= width or line.startswith(("|", "#", "=", "-", "*", "[", "<")):
            lines.append(line)
        else:
            lines.append(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False))
    return "\n".join(lines)


def emphasise(text: str, rng: random.Random) -> str:
    """Mark one capitalised name or number in bold, as people do in notes."""
    match = re.search(r"(?<![\w*])([A-Z][a-z]+ [A-Z][a-z]+|\d[\d:.,]*)(?![\w*:])", text)
    if not match or "\n" in text or "|" in text:
        return text
    return text[: match.start()] + rng.choice(_MARK).format(match.group()) + text[match.end() :]
