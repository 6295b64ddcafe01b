"""Whether contexts may be joined approximately: measured on their own documents, and remembered.

The same questions are asked of the exact composition and of the one that is put together; then the
exact answers go through the model once after each (engine/agreeing.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.blends import Agreed, Approximate
from preread.contexts.ask import AskOptions, ask_many
from preread.contexts.blending import remember
from preread.contexts.opened import Opened
from preread.contexts.questions import Question, read_questions
from preread.errors import EngineError, UsageError
from preread.types import Completion

if TYPE_CHECKING:
    from preread.app.engine import Engine
    from preread.contexts.catalog.base import ContextRecord

PROBES = 24  # questions at most, where none are given
HEADING = re.compile(r"^#{1,6} +(\S.*?) *#*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ApproximateReport:
    """tokens: of the composition, all shards; approximate: with what was measured."""

    target: str
    model: str
    tokens: int
    approximate: Approximate

    def to_json(self) -> dict[str, Any]:
        said = {"target": self.target, "model": self.model, "context_tokens": self.tokens}
        return said | self.approximate.to_json()


def check_approximate(
    engine: Engine, target: str, questions: Path | None = None
) -> ApproximateReport:
    """Measure what joins `target`'s contexts as configured, and remember it in the home: every
    answer on them says it from now on. questions: a file of them (see `compare`), else the headings
    of the documents are asked about. Raises UsageError where nothing can be approximate, and
    EngineError if a question fails."""
    opened = engine.open(target, approximate=True).opened
    record, approximate = opened.record, opened.approximate
    assert approximate is not None, "it was opened so"
    agree = getattr(engine.backend, "agreement", None)
    if agree is None:
        raise UsageError(
            f"{engine.info.name} puts no prefixes together from parts.",
            hint="Use the exact composition.",
        )
    asked = read_questions(questions) if questions else probes(record)
    exact, other = (_answers(engine, arm, asked) for arm in (Opened(record), opened))
    turns: dict[int, list[tuple[str, Sequence[int]]]] = {}
    for question, answer in zip(asked, exact, strict=True):
        best = opened.router.route(question.text, 1).shards[0]
        turns.setdefault(best, []).append((question.text, answer.tokens))
    tokens = equal = divergence = 0
    for shard, told in turns.items():
        found = engine.run(agree(opened.prefix(shard), told))
        tokens, equal = tokens + found.tokens, equal + found.equal
        divergence += found.divergence
    graded = [question for question in asked if question.references]
    agreed = Agreed(
        tokens=tokens,
        equal=equal / tokens,
        divergence=divergence / tokens,
        questions=len(asked),
        same=sum(a.tokens == b.tokens for a, b in zip(exact, other, strict=True)),
        graded=len(graded),
        right_exact=_right(asked, exact),
        right=_right(asked, other),
    )
    remember(engine.config, record, approximate.blend, agreed)
    measured = replace(approximate, agreed=agreed)
    return ApproximateReport(target, engine.info.model, record.tokens, measured)


def probes(record: ContextRecord, most: int = PROBES) -> tuple[Question, ...]:
    """Questions about what the documents of a context are about, evenly over all of them."""
    asked = []
    for source in record.sources:
        heads = HEADING.findall(source.text) or [source.path]
        asked += [f"What do the documents say about {head}?" for head in heads]
    step = max(1, -(-len(asked) // most))
    return tuple(Question(text) for text in dict.fromkeys(asked[::step]))


def _answers(engine: Engine, arm: Opened, asked: Sequence[Question]) -> list[Completion]:
    from preread.app.options import generate_work

    work = generate_work({}, engine.config.context.max_tokens)
    texts, options = [question.text for question in asked], AskOptions(shards=1, cite=False)
    answers = engine.run(ask_many(engine.backend, arm, texts, work, options))
    if failed := [answer.error for answer in answers if answer.error]:
        raise EngineError(f"A question failed: {failed[0]}", hint="preread doctor")
    return answers


def _right(questions: Sequence[Question], answers: Sequence[Completion]) -> int:
    return sum(bool(q.grade(a.text)) for q, a in zip(questions, answers, strict=True))
