"""The language bank: parser, checks and the blocks it yields.

Every rule of bank/README.md is checked; an error names file and line. Blocks of the folder
`schemas/` have the same form, and may besides use phrase types (`np_thing`, `where`, ...) and
slots inside questions.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from training.templates import Synonyms, Template, compile_template, make_synonyms

HERE = Path(__file__).parent
SUBJECT_TYPES = frozenset(
    "person org product city place department title vehicle animal event project".split()
)
_SLOT = re.compile(r"\{(\w+)\}")


class BankError(ValueError):
    """A line of the bank that breaks a rule; the message starts with file and line."""


@dataclass(frozen=True, slots=True)
class SlotType:
    """What may stand in a slot: a type name, or fixed alternatives."""

    kind: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """One way to ask for a slot. `keys`: slots that the question names."""

    slot: str
    answer: Template
    text: Template
    keys: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A fact, a policy, a schema or a note: slots, ways to state them and ways to ask for each."""

    kind: str
    name: str
    origin: str
    slots: Mapping[str, SlotType]
    statements: tuple[Template, ...]
    questions: tuple[Question, ...]
    row: str = ""
    unanswered: tuple[Template, ...] = ()
    """questions on the same subject that no statement answers"""

    def answer_kind(self, slot: str) -> str:
        """The value type that a question for this slot asks for."""
        kind = self.slots[slot].kind
        return kind or f"options of {self.name}.{slot}"


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """Notes that together are one document, in order."""

    title: str
    origin: str
    notes: tuple[Block, ...]
    held_out: bool


@dataclass(frozen=True, slots=True)
class Bank:
    """Everything the generator speaks with."""

    facts: tuple[Block, ...]
    policies: tuple[Block, ...]
    schemas: tuple[Block, ...]
    fillers: tuple[Template, ...]
    synonyms: Synonyms
    notes: tuple[Block, ...] = ()
    pages: tuple[Page, ...] = ()
    words: tuple[str, ...] = ()
    """stems of the policies' and notes' words that may take each other's place"""
    rivals: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """policy -> policies on the same topic, which must not stand in one document with it"""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """first word -> all fixed alternatives of the bank that begin with it ("at" -> "at the side
    door", ...)
    """


@dataclass(slots=True)
class _Raw:
    """A block as read, before its rules are checked."""

    kind: str
    name: str
    origin: str
    fields: list[tuple[str, str, str]] = field(default_factory=list)
    """(origin, field name, text)"""


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("#"):
            yield f"{path.name}:{number}", line.rstrip()


def _read(paths: Iterable[Path]) -> tuple[list[_Raw], list[list[str]], list[tuple[str, str]]]:
    """Blocks, synonym groups and fillers of some files."""
    blocks: list[_Raw] = []
    synonyms: list[list[str]] = []
    fillers: list[tuple[str, str]] = []
    for path in paths:
        current: _Raw | None = None
        for origin, line in _lines(path):
            if not line.strip():
                current = None
            elif line.startswith("@syn "):
                synonyms.append([word.strip() for word in line[5:].split(",") if word.strip()])
            elif line.startswith("@filler "):
                fillers.append((origin, line[8:].strip()))
            elif line.startswith("@"):
                kind, _, name = line[1:].partition(" ")
                if kind not in ("fact", "policy", "schema") or not name.strip():
                    raise BankError(f"{origin}: unknown directive {line!r}")
                current = _Raw(kind, name.strip(), origin)
                blocks.append(current)
            else:
                head, colon, text = line.partition(":")
                if current is None or not colon:
                    raise BankError(f"{origin}: a line outside of any block: {line!r}")
                current.fields.append((origin, head.strip(), text.strip().replace("\\n", "\n")))
    return blocks, synonyms, fillers


def _slots(raw: _Raw) -> dict[str, SlotType]:
    if raw.kind == "fact":
        found = {head: text for _, head, text in raw.fields if head in ("subject", "value")}
        if set(found) != {"subject", "value"}:
            raise BankError(f"{raw.origin}: a fact needs `subject:` and `value:`")
        if found["subject"] not in SUBJECT_TYPES:
            raise BankError(f"{raw.origin}: {found['subject']!r} is no subject type")
        return {"s": SlotType(found["subject"]), "v": _slot_type(found["value"])}
    slots = {}
    for _, head, text in raw.fields:
        if head.startswith("slot "):
            slots[head[5:].strip()] = _slot_type(text)
    return slots


def _slot_type(text: str) -> SlotType:
    options = tuple(option.strip() for option in text.split(" | "))
    return SlotType("", options) if len(options) > 1 else SlotType(text.strip())


def _question(
    raw: _Raw, head: str, text: str, slots: Mapping[str, SlotType], syn: Synonyms
) -> Question:
    """Parse `q`, `q SLOT` or `q SLOT = FORM` and its text (the FORM holds no colon)."""
    spec = head[1:].strip()
    slot, _, form = (part.strip() for part in spec.partition("="))
    if raw.kind == "fact":
        slot = "v"
    answer = compile_template(form or f"{{{slot}}}", make_synonyms([]))
    template = compile_template(text, syn)
    if slot not in slots:
        raise BankError(f"unknown slot {slot!r} in a question")
    if slot in template.slots:
        raise BankError("the question gives its own answer away")
    return Question(slot, answer, template, template.slots)


def _check(raw: _Raw, block: Block, types: frozenset[str], strict: bool) -> None:
    """Raise on a broken rule. An answer that is no piece of some statement is tolerated unless
    `strict`.
    """
    for name, slot in block.slots.items():
        if slot.kind and slot.kind not in types:
            raise BankError(f"{raw.origin}: slot {name}: unknown type {slot.kind!r}")
    if not block.statements or not block.questions:
        raise BankError(f"{raw.origin}: {raw.name} needs statements and questions")
    for template in block.statements:
        names = _SLOT.findall(template.source)
        if sorted(names) != sorted(block.slots):
            raise BankError(f"{raw.origin}: every slot once, not {names}: {template.source!r}")
        for question in block.questions:
            if strict and question.answer.source.lower() not in template.source.lower():
                raise BankError(
                    f"{raw.origin}: answer {question.answer.source!r} not in {template.source!r}"
                )
    for question in block.questions:
        if raw.kind == "fact" and question.keys != {"s"}:
            raise BankError(f"{raw.origin}: a question needs {{s}} alone: {question.text.source!r}")
        if question.keys - set(block.slots):
            raise BankError(f"{raw.origin}: unknown slot in {question.text.source!r}")


def _build(raw: _Raw, syn: Synonyms, types: frozenset[str], strict: bool) -> Block:
    slots = _slots(raw)
    statements: list[Template] = []
    questions: list[Question] = []
    row = ""
    for origin, head, text in raw.fields:
        try:
            if head in ("a", "p"):
                statements.append(compile_template(text, syn))
            elif head == "q" or head.startswith("q "):
                questions.append(_question(raw, head, text, slots, syn))
            elif head == "row":
                row = text
            elif not head.startswith("slot ") and head not in ("subject", "value"):
                raise BankError(f"unknown field {head!r}")
        except BankError as error:
            raise BankError(f"{origin}: {raw.name}: {error}") from error
    if not strict:
        statements = [t for t in statements if sorted(_SLOT.findall(t.source)) == sorted(slots)]
    block = Block(raw.kind, raw.name, raw.origin, slots, tuple(statements), tuple(questions), row)
    _check(raw, block, types, strict)
    return block


def load_bank(types: frozenset[str], strict: bool = True, folder: Path = HERE) -> Bank:
    """Read `bank/*.txt` and `schemas/*.txt`.

    With `strict` a faulty block raises BankError, otherwise it is left out and named on standard
    output.
    """
    paths = sorted((folder / "bank").glob("*.txt")) + sorted((folder / "schemas").glob("*.txt"))
    raws, synonyms, fillers = _read(paths)
    syn = make_synonyms(synonyms)
    blocks: list[Block] = []
    for raw in raws:
        try:
            blocks.append(_build(raw, syn, types, strict))
        except BankError as error:
            if strict:
                raise
            print(f"left out: {error}", flush=True)
    fill = tuple(compile_template(text, syn) for _, text in fillers)
    by_kind = {
        kind: tuple(b for b in blocks if b.kind == kind) for kind in ("fact", "policy", "schema")
    }
    return Bank(by_kind["fact"], by_kind["policy"], by_kind["schema"], fill, syn)


def pooled_options(blocks: Iterable[Block]) -> dict[str, tuple[str, ...]]:
    """All fixed alternatives, by their first word; where that is no small word they stay with
    their block.
    """
    pool: dict[str, list[str]] = {}
    for block in blocks:
        for slot in block.slots.values():
            for option in slot.options:
                pool.setdefault(option.split(" ", 1)[0], []).append(option)
    return {
        word: tuple(dict.fromkeys(options))
        for word, options in pool.items()
        if word in _SMALL_WORDS
    }


_SMALL_WORDS = frozenset(
    "in at on by under behind with the a an to from near before after if because for when next "
    "outside over".split()
)
