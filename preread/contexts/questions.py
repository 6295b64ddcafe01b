"""A file of questions to compare by: JSONL, checked whole before anything is computed. And what
counts as the same answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from preread.errors import RequestError

FINAL = ".,;:!?…。！？"
QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "„": "“", "«": "»", "»": "«"}
SHOWN = 20  # faults of one file that are printed
FORMAT = 'One JSON object a line: {"question": "…", "answer": "…", "also": ["…"]}.'


@dataclass(frozen=True, slots=True)
class Question:
    """references: the answers that count as right, as `normal` leaves them; () when not graded."""

    text: str
    references: tuple[str, ...] = ()

    def grade(self, answer: str) -> bool | None:
        """Whether an answer is one of the right ones; None when there is nothing to go by."""
        return normal(answer) in self.references if self.references else None


def normal(answer: str) -> str:
    """What exact match compares: case folded, white space squeezed, final punctuation and
    surrounding quotes gone."""
    text = " ".join(answer.casefold().split())
    before = None
    while text != before:
        before = text
        text = text.rstrip(FINAL).strip()
        if len(text) > 1 and QUOTES.get(text[0]) == text[-1]:
            text = text[1:-1].strip()
    return text


class _Line(BaseModel):
    """A line as it enters. source: where the answer stands, for people; not used."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    answer: str | None = None
    also: list[str] = []
    source: str = ""

    @field_validator("question")
    @classmethod
    def _asks(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("is empty")
        return text

    @field_validator("answer", "also")
    @classmethod
    def _says_something(cls, value: str | list[str] | None) -> str | list[str] | None:
        answers = [value] if isinstance(value, str) else value or []
        if not all(normal(answer) for answer in answers):
            raise ValueError("nothing is left to compare with (white space and punctuation only)")
        return value

    def question_of(self) -> Question:
        answers = [*([self.answer] if self.answer is not None else []), *self.also]
        return Question(self.question, tuple(dict.fromkeys(map(normal, answers))))


def read_questions(path: Path) -> tuple[Question, ...]:
    """All questions of a JSONL file, in order; blank lines do not count. Raises RequestError that
    names every fault by line and field, or says why the file cannot be read."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as exc:
        raise RequestError(f"{path}: {exc.strerror or exc}.", hint=FORMAT) from exc
    questions: list[Question] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            questions.append(_Line.model_validate_json(line).question_of())
        except ValidationError as exc:
            faults += (f"{path}, line {number}: {fault}." for fault in _faults(exc))
    if faults:
        more = [f"… and {len(faults) - SHOWN:,} more."] if len(faults) > SHOWN else []
        raise RequestError("\n".join([*faults[:SHOWN], *more]), hint=FORMAT)
    if not questions:
        raise RequestError(f"{path} holds no question.", hint=FORMAT)
    return tuple(questions)


def _faults(exc: ValidationError) -> Iterator[str]:
    for error in exc.errors(include_url=False):
        where = ".".join(str(part) for part in error["loc"])
        what = error["msg"].removeprefix("Value error, ").replace(" at line 1 column", ", column")
        yield f"{where}: {what}" if where else what
