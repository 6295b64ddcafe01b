"""What the suites of backends and tiers read and ask: the book of a house, questions about it, and
requests that every backend refuses."""

from __future__ import annotations

import numpy as np

from preread.backend import Choose, Generate, LogLikelihood, RequestBatch
from preread.types import Prefix

FACTS = "\n".join(
    f"Room {n} is on floor {n % 7} and its key hangs on hook {n * 3}." for n in range(20)
)
BOOK = Prefix(f"Answer from the documents below.\n\n[house.md]\n{FACTS}")
OTHER = Prefix("Say the opposite of what is asked.")
QUESTIONS = ("Where is room 4?", "Which hook has the key of room 11?", "Is there a room 90?")
SHORT = Generate(max_tokens=8, ignore_eos=True)
BROKEN = {
    "prefix that is not there": RequestBatch(SHORT, ["a"], (BOOK,), np.array([1], np.int32)),
    "too few prefix numbers": RequestBatch(SHORT, ["a", "b"], (BOOK,), np.array([0], np.int32)),
    "no tokens wanted": RequestBatch(Generate(max_tokens=0), ["a"]),
    "no labels": RequestBatch(Choose(()), ["a"]),
    "an empty label": RequestBatch(Choose(("yes", "")), ["a"]),
    "a label twice": RequestBatch(Choose(("yes", "yes")), ["a"]),
    "too few continuations": RequestBatch(LogLikelihood(["x"]), ["a", "b"]),
}
