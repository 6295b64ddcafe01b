"""The pieces a document is made of, and what is asked about them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Turn(NamedTuple):
    """One question and its answer."""

    question: str
    answer: str


NOT_STATED = "not stated"
"""The answer when the documents do not say."""

Ask = Callable[[random.Random], list[Turn]]
"""Makes a question with its answer, and sometimes follow-ups that lean on it."""


@dataclass(slots=True)
class Unit:
    """A paragraph (or a few) of a document and the questions it can answer.

    `apart` holds further paragraphs that belong to other places of the document; `rows` are
    (label, value) pairs that may be shown as a list or table instead of `text`; `subject` is what
    the unit is about, as it is named in `text`.
    """

    text: str
    asks: list[Ask] = field(default_factory=list)
    skill: str = ""
    title: str = ""
    apart: list[str] = field(default_factory=list)
    states: set[tuple[str, str]] = field(default_factory=set)
    """(subject, kind of answer) pairs that are answered here, to keep unanswerable questions
    honest
    """
    subject: str = ""
    missing: list[Ask] = field(default_factory=list)
    """near-miss questions about this unit that it does not answer"""


def contains(text: str, answer: str) -> bool:
    """Whether an answer stands in a text, whatever the case and the line breaks."""
    return answer.lower() in " ".join(text.lower().split())
