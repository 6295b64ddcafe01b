"""Hand-written documents with questions, which never occur in training."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from training.answerer import Answerer
from training.documents import Message
from training.layout import INSTRUCTION


class Outcome(NamedTuple):
    """One question: what was expected, what came, whether it counts."""

    question: str
    expected: str
    got: str
    right: bool


def normal(text: str) -> str:
    """Lower case, single spaces, no final punctuation."""
    return re.sub(r"[\s.!?,;:]+$", "", " ".join(text.lower().split()))


def loose(text: str) -> str:
    """`normal` without a leading article or preposition."""
    return re.sub(
        r"^(?:(?:the|a|an|in|on|at|by|for|to|from|with|of|within|up to|about|only|until|before"
        r"|after)\s+)+",
        "",
        normal(text),
    )


def read_folder(folder: Path) -> str:
    """All texts of a folder in the product's prompt layout, in the order of their names."""
    parts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".md", ".txt", ".rst") and path.name != "README.md":
            parts.append(
                f"[{path.relative_to(folder.parent).as_posix()}]\n{path.read_text(encoding='utf-8').strip()}"
            )
    return "\n\n".join(parts)


def run(answerer: Answerer, folder: Path, questions: Path) -> list[Outcome]:
    """Ask every question of a `questions.jsonl` about a folder, each on its own."""
    text = read_folder(folder)
    rows = [
        json.loads(line)
        for line in questions.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    chats: Sequence[Sequence[Message]] = [
        (Message("system", f"{INSTRUCTION}\n\n{text}"), Message("user", row["question"]))
        for row in rows
    ]
    outcomes = []
    for row, got in zip(rows, answerer.answer(chats, 40), strict=True):
        good = {loose(answer) for answer in [row["answer"], *row.get("also", [])]}
        outcomes.append(Outcome(row["question"], row["answer"], got, loose(got) in good))
    return outcomes
