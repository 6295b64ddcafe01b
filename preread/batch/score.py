"""Scoring: probabilities over given labels for every row of a table, nothing decoded.

A row asks each question once or, with the position check, a second time with the labels listed the
other way round. Calibration divides by what the model says to items without content and normalises
again (Zhao et al. 2021, arXiv:2102.09690, with W = diag(p_cf)^-1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preread.backend import Choose
from preread.batch.journal import Journal
from preread.batch.order import Order
from preread.batch.schema import Merged
from preread.batch.strict import NotFinite, Twice, parse
from preread.errors import RequestError
from preread.types import Prefix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Probs = NDArray[np.float64]

CONTENT_FREE = ("N/A", "[MASK]")  # as in the paper; its third, the empty text, is no request
WIDEST_SCALE = 101
DIGITS = 6  # of a probability in the output


@dataclass(frozen=True, slots=True)
class Question:
    """name: of its columns, "" where it is the only one; text: "" where the shared part asks
    already; values: of the labels of a numeric scale, None for names."""

    name: str
    text: str
    labels: tuple[str, ...]
    values: tuple[float, ...] | None = None

    def asks(self, listed: Sequence[str]) -> str:
        line = f"Answer with exactly one of: {', '.join(listed)}."
        return f"{self.text}\n{line}" if self.text else line

    def column(self, what: str) -> str:
        return f"{self.name}.{what}" if self.name else what


def labelled(text: str) -> Question:
    """Of `--labels A,B,C`. Raises RequestError."""
    return Question("", "", _labels([label.strip() for label in text.split(",")], "--labels"))


def scaled(text: str, name: str = "", question: str = "", where: str = "--scale") -> Question:
    """Of `1-5`. Raises RequestError."""
    low, dash, high = text.partition("-")
    short = max(len(low), len(high)) <= 9
    if not (dash and short and low.strip().isdecimal() and high.strip().isdecimal()):
        raise RequestError(
            f"{where} {text!r}.", hint="Give two whole numbers, the smaller first: 1-5."
        )
    values = range(int(low), int(high) + 1)
    if not 2 <= len(values) <= WIDEST_SCALE:
        raise RequestError(
            f"{where} {text!r} has {len(values)} values.",
            hint=f"Give 2 to {WIDEST_SCALE}, the smaller end first: 1-5.",
        )
    return Question(name, question, tuple(map(str, values)), tuple(map(float, values)))


def read_questions(path: Path) -> list[Question]:
    """Lines `{"name", "question", "labels": […]}` or `"scale": "1-5"`. Raises RequestError naming
    line and field."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise RequestError(f"--questions {path}: {exc}.", hint="Give a JSONL file.") from exc
    found: list[Question] = []
    for at, line in enumerate(lines, 1):
        if line.strip():
            found.append(_question(line, f"{path}:{at}"))
            if found[-1].name in {question.name for question in found[:-1]}:
                raise RequestError(
                    f"{path}:{at}: name: {found[-1].name!r} is there twice.", hint="Rename one."
                )
    if not found:
        raise RequestError(f"{path} holds no question.", hint="Give one JSON object per line.")
    return found


def _question(line: str, where: str) -> Question:
    try:
        value = parse(line)
    except (NotFinite, Twice) as exc:
        raise RequestError(f"{where}: {exc.field}: {exc}.", hint="Mend the line.") from exc
    except (ValueError, RecursionError) as exc:
        raise RequestError(f"{where}: not JSON: {exc}.", hint="Mend the line.") from exc
    hint = 'Give {"name": …, "question": …, "labels": […]} or "scale": "1-5".'
    if not isinstance(value, dict):
        raise RequestError(f"{where}: expected an object.", hint=hint)
    for field in ("name", "question"):
        if not isinstance(value.get(field), str) or not value[field].strip():
            raise RequestError(f"{where}: {field}: expected a text.", hint=hint)
    known = {"name", "question", "labels", "scale"}
    if unknown := sorted(value.keys() - known):
        raise RequestError(f"{where}: {unknown[0]}: unknown.", hint=hint)
    if ("labels" in value) == ("scale" in value):
        raise RequestError(f"{where}: labels: expected these or a scale.", hint=hint)
    if "scale" in value:
        return scaled(str(value["scale"]), value["name"], value["question"], f"{where}: scale")
    labels = value["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise RequestError(f"{where}: labels: expected a list of texts.", hint=hint)
    return Question(value["name"], value["question"], _labels(labels, f"{where}: labels"))


def _labels(labels: list[str], where: str) -> tuple[str, ...]:
    if len(labels) < 2 or not all(labels) or len({*labels}) < len(labels):
        raise RequestError(f"{where}: {labels}.", hint="Give two or more; none empty, none twice.")
    return tuple(labels)


class Scoring:
    """What is asked of every row, and what its requests mean as columns."""

    def __init__(
        self, questions: Sequence[Question], model: str, rubric: str, *, calibrate: bool,
        check_position: bool,
    ) -> None:  # fmt: skip
        self.questions = list(questions)
        self._model = model
        self._rubric = rubric
        self._turns = 2 if check_position else 1
        self._calibrate = calibrate
        self._empty: list[Probs] = []  # of each request of a row, what it says to nothing

    @property
    def fixed(self) -> tuple[str, ...]:
        """Items asked beside the rows of the input."""
        return CONTENT_FREE if self._calibrate else ()

    def asks(self) -> Iterator[tuple[Order, Prefix, str]]:
        """The requests of every row. With one question all but the item is shared; with several,
        they follow the item, which their requests then have in common."""
        for question in self.questions:
            order = Order(self._model, Choose(question.labels))
            for turn in range(self._turns):
                text = question.asks(question.labels[::-1] if turn else question.labels)
                if question.text:
                    yield order, Prefix(self._rubric), f"\n\n{text}"
                else:
                    yield order, Prefix(f"{self._rubric}\n\n{text}".strip()), ""

    def columns(self) -> list[str]:
        """That the output adds."""
        return [name for question in self.questions for name in self._columns(question)] + ["error"]

    def _columns(self, question: Question) -> Iterator[str]:
        yield question.column("label")
        if question.values:
            yield question.column("score")
        yield from (question.column(f"p({label})") for label in question.labels)
        yield question.column("mass")
        if self._turns == 2:
            yield question.column("agree")

    def prepare(self, journal: Journal) -> None:
        """Read what the items without content got, before the rows are made into cells."""
        self._empty = []
        if not self._calibrate:
            return
        fan, rows = int(journal.get("fan")), int(journal.get("rows"))
        items = [journal.merged((rows + i) * fan, (rows + i + 1) * fan) for i in range(2)]
        for requests in zip(*items, strict=True):
            if any(row.finish == "error" or row.probs is None for row in requests):
                why = next((row.error for row in requests if row.error), "no answer")
                raise RequestError(
                    f"--calibrate: an item without content has failed: {why}.",
                    hint="Leave out --calibrate, or --retry-failed.",
                )
            mean = np.mean([_probs(row) for row in requests], axis=0)
            self._empty.append(mean / mean.sum())

    def cells(self, group: Sequence[Merged]) -> dict[str, Any]:
        """The columns that a row's requests make; those of a question that failed are left out."""
        made: dict[str, Any] = {"error": ""}
        for i, question in enumerate(self.questions):
            at = range(i * self._turns, (i + 1) * self._turns)
            failed = [group[j].error for j in at if group[j].finish == "error"]
            if failed:
                made["error"] = made["error"] or failed[0]
            else:
                made |= self._answer(question, [group[j] for j in at], at)
        return made

    def _answer(
        self, question: Question, rows: Sequence[Merged], at: Sequence[int]
    ) -> dict[str, Any]:
        turns = [self._calibrated(_probs(row), j) for row, j in zip(rows, at, strict=True)]
        probs = np.mean(turns, axis=0)
        mass = sum(row.mass or 0.0 for row in rows) / len(rows)
        made: dict[str, Any] = {"label": question.labels[int(probs.argmax())]}
        if question.values:
            made["score"] = round(float(probs @ np.array(question.values)), DIGITS)
        shown = (round(p, DIGITS) for p in probs.tolist())
        made |= {f"p({label})": p for label, p in zip(question.labels, shown, strict=True)}
        made["mass"] = round(mass, DIGITS)
        if len(turns) == 2:
            made["agree"] = bool(turns[0].argmax() == turns[1].argmax())
        return {question.column(name): value for name, value in made.items()}

    def _calibrated(self, probs: Probs, request: int) -> Probs:
        if not self._empty:
            return probs
        scaled: Probs = probs / np.maximum(self._empty[request], 1e-9)
        scaled /= scaled.sum()
        return scaled


def _probs(row: Merged) -> Probs:
    assert row.probs is not None
    probs: Probs = np.frombuffer(row.probs, np.float32).astype(np.float64)
    return probs
