"""What a comparison found: per arm and question, and from which number of questions on reading once
is worth it. Times are seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Any

from preread.backend import BackendInfo
from preread.contexts.catalog.base import ContextRecord
from preread.contexts.questions import Question
from preread.types import Usage

CACHED, INCONTEXT, BM25 = "cached", "incontext", "bm25"


@dataclass(frozen=True, slots=True)
class Answer:
    """One arm's answer to one question. correct: by exact match, None when not graded; seconds:
    from the question to the whole answer, search included; ttft_s: to its first token."""

    text: str
    correct: bool | None
    seconds: float
    ttft_s: float
    usage: Usage
    error: str = ""


@dataclass(frozen=True, slots=True)
class ArmResult:
    """answers: in the order of the questions. build_s, build_tokens: spent and computed before the
    first of them. Medians are over the answered questions (at least one is)."""

    name: str
    build_s: float
    build_tokens: int
    answers: tuple[Answer, ...]

    @property
    def ttft_s(self) -> float:
        return median(a.ttft_s for a in self.answers if not a.error)

    @property
    def per_question_s(self) -> float:
        return median(a.seconds for a in self.answers if not a.error)

    @property
    def total_s(self) -> float:
        return self.build_s + sum(a.seconds for a in self.answers)

    @property
    def usage(self) -> Usage:
        """Sum over the questions; the build is not in it."""
        return sum((a.usage for a in self.answers), Usage())

    @property
    def computed_tokens(self) -> int:
        """Everything the model read for this arm, the build included."""
        return self.build_tokens + self.usage.computed_tokens

    @property
    def graded(self) -> int:
        return sum(a.correct is not None for a in self.answers)

    @property
    def correct(self) -> int:
        return sum(a.correct is True for a in self.answers)

    @property
    def failed(self) -> int:
        return sum(bool(a.error) for a in self.answers)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """questions: the smallest number for which `cached`, its build included, takes no longer than
    the other arm with its own; None: never, the other is not slower per question."""

    cached: ArmResult
    other: ArmResult
    questions: int | None

    def describe(self) -> str:
        """One sentence with the numbers."""
        cost = " against ".join(
            f"{arm.build_s:.3g} s + {arm.per_question_s:.3g} s per question"
            for arm in (self.cached, self.other)
        )
        if self.questions is None:
            return f"cached never breaks even with {self.other.name}: {cost}."
        plural = "" if self.questions == 1 else "s"
        return (
            f"cached breaks even with {self.other.name} at {self.questions:,} question{plural}: "
            f"{cost}."
        )


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of `cached` with `incontext`. equal: questions that both answered with the same text;
    differing: indices of questions with two texts, or answered by only one of the two."""

    equal: int
    differing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared, and how it went. break_even and agreement need the arm `cached`; without
    it they are empty."""

    record: ContextRecord
    backend: BackendInfo
    questions: tuple[Question, ...]
    arms: tuple[ArmResult, ...]

    @property
    def break_even(self) -> tuple[BreakEven, ...]:
        cached = next((arm for arm in self.arms if arm.name == CACHED), None)
        if cached is None:
            return ()
        others = (arm for arm in self.arms if arm is not cached)
        return tuple(BreakEven(cached, other, break_even(cached, other)) for other in others)

    @property
    def agreement(self) -> Agreement | None:
        by_name = {arm.name: arm for arm in self.arms}
        if not by_name.keys() >= {CACHED, INCONTEXT}:
            return None
        pairs = list(zip(by_name[CACHED].answers, by_name[INCONTEXT].answers, strict=True))
        differing = (
            i
            for i, (a, b) in enumerate(pairs)
            if (a.text, bool(a.error)) != (b.text, bool(b.error))
        )
        equal = sum(a.text == b.text and not (a.error or b.error) for a, b in pairs)
        return Agreement(equal, tuple(differing))

    def to_json(self) -> dict[str, Any]:
        """The documented object of `compare --json`, but for the page. Seconds and tokens."""
        agreement = self.agreement
        return {
            "name": self.record.name,
            "version": self.record.version,
            "fingerprint": self.record.fingerprint,
            "model": self.backend.model,
            "device": self.backend.device,
            "context_tokens": self.record.tokens,
            "shards": len(self.record.shards),
            "questions": [question.text for question in self.questions],
            "arms": {arm.name: _arm_json(arm) for arm in self.arms},
            "break_even": {b.other.name: b.questions for b in self.break_even},
            "verdict": [b.describe() for b in self.break_even],
            "agreement": agreement
            and {"equal": agreement.equal, "differing": list(agreement.differing)},
        }


def _arm_json(arm: ArmResult) -> dict[str, Any]:
    return {
        "build_s": round(arm.build_s, 6),
        "build_tokens": arm.build_tokens,
        "ttft_s": round(arm.ttft_s, 6),
        "per_question_s": round(arm.per_question_s, 6),
        "total_s": round(arm.total_s, 6),
        "computed_tokens": arm.computed_tokens,
        "cached_tokens": arm.usage.cached_tokens,
        "output_tokens": arm.usage.output_tokens,
        "graded": arm.graded,
        "correct": arm.correct,
        "failed": arm.failed,
        "answers": [
            {
                "text": a.text,
                "correct": a.correct,
                "seconds": round(a.seconds, 6),
                "ttft_s": round(a.ttft_s, 6),
                **({"error": a.error} if a.error else {}),
            }
            for a in arm.answers
        ],
    }


def break_even(cached: ArmResult, other: ArmResult) -> int | None:
    """Smallest n >= 0 with build + n * t_cached <= build_other + n * t_other; None if there is
    none."""
    behind = Fraction(cached.build_s) - Fraction(other.build_s)
    gain = Fraction(other.per_question_s) - Fraction(cached.per_question_s)
    if behind <= 0:
        return 0
    return math.ceil(behind / gain) if gain > 0 else None
