"""What the rows of a score came to: counts for a histogram, and the best rows."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from preread.batch.schema import Merged
from preread.batch.score import Question, Scoring

TOP = 20  # rows shown
BINS = 20  # of a scale with more values


@dataclass(slots=True)
class Scored:
    """Watches the rows as they are written. best: (value, -row number, cells) of the top rows by
    the first question: its score, or the probability of its first label."""

    scoring: Scoring
    rows: int = 0
    failed: int = 0
    counts: list[Counter[str]] = field(default_factory=list)
    agreed: list[int] = field(default_factory=list)
    mass: list[float] = field(default_factory=list)
    best: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)

    def begin(self) -> None:
        """Nothing seen yet."""
        n = len(self.scoring.questions)
        self.rows = self.failed = 0
        self.counts, self.agreed, self.mass = [Counter() for _ in range(n)], [0] * n, [0.0] * n
        self.best = []

    def cells(self, group: Sequence[Merged]) -> dict[str, Any]:
        """As Scoring.cells."""
        made = self.scoring.cells(group)
        self.rows += 1
        self.failed += bool(made["error"])
        for i, question in enumerate(self.scoring.questions):
            label = made.get(question.column("label"))
            if label is None:
                continue
            self.counts[i][_bin(question, made, label)] += 1
            self.agreed[i] += bool(made.get(question.column("agree")))
            self.mass[i] += made[question.column("mass")]
            if i == 0:
                value = made[question.column(_ranked(question))]
                entry = (value, -self.rows, made | {"carry": group[0].carry})
                if len(self.best) < TOP:
                    heapq.heappush(self.best, entry)
                else:
                    heapq.heappushpop(self.best, entry)
        return made

    def top(self) -> list[dict[str, Any]]:
        """The best first; of equal ones the earlier."""
        return [cells for _, _, cells in sorted(self.best, key=lambda e: e[:2], reverse=True)]

    def histogram(self, number: int) -> list[tuple[str, int]]:
        """Rows by their most probable label, or by the value next to their score."""
        question, counts = self.scoring.questions[number], self.counts[number]
        return [(name, counts[name]) for name in _names(question)]

    def to_json(self) -> list[dict[str, Any]]:
        """An object per question."""
        made = []
        for i, question in enumerate(self.scoring.questions):
            answered = sum(self.counts[i].values())
            value: dict[str, Any] = {
                "name": question.name,
                "counts": dict(self.histogram(i)),
                "mass": round(self.mass[i] / answered, 4) if answered else None,
            }
            if question.column("agree") in self.scoring.columns():
                value["agreement"] = round(self.agreed[i] / answered, 4) if answered else None
            made.append(value)
        return made


def _ranked(question: Question) -> str:
    return "score" if question.values else f"p({question.labels[0]})"


def _names(question: Question) -> list[str]:
    step = _step(question)
    return list(question.labels[::step]) if question.values else list(question.labels)


def _bin(question: Question, made: dict[str, Any], label: str) -> str:
    if not question.values:
        return label
    step, score = _step(question), float(made[question.column("score")])
    place = round((score - question.values[0]) / step)
    names = _names(question)
    return names[min(place, len(names) - 1)]


def _step(question: Question) -> int:
    return -(-len(question.labels) // BINS)
