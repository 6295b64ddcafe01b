"""Notes: single natural passages with questions, in a shorter form than the bank's.

    python -m training.notes training/notes/work01.txt     # names every fault by file and line

A block is a passage in one line (`\\n` for a line break) with slots `{name:type}` or
`{name:this|that|…}`, then lines `name: question`, `name = FORM: question` (the answer is FORM, a
piece of the passage) and `none: question` (the passage does not say). Blank lines separate
blocks; `# ` starts a comment. A line `@page title` says that the blocks up to the next one are a
whole document. The format is described in bank/README.md.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.bank import BankError, Block, Page, Question, SlotType
from training.templates import (
    Template,
    compile_template,
    is_held_out_template,
    make_synonyms,
)

HERE = Path(__file__).parent / "notes"
PAGES = Path(__file__).parent / "pages"
_SLOT = re.compile(r"\{(\w+):([^{}]*)\}")
_LINE = re.compile(r"(\w+)\s*(?:=\s*([^:]*\S)\s*)?:\s+(\S.*)")
_PLAIN = make_synonyms([])
"""Notes stand as they were written; synonyms that fit in most sentences garble some."""
Line = tuple[str, str]
"""(origin, text)"""


def _groups(path: Path) -> Iterator[list[Line]]:
    """The non-empty lines of each block."""
    group: list[Line] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and not line.startswith("# "):
            group.append((f"{path.name}:{number}", line.strip()))
        elif not line.strip() and group:
            yield group
            group = []
    if group:
        yield group


def _slots(passage: str, types: frozenset[str]) -> dict[str, SlotType]:
    slots: dict[str, SlotType] = {}
    for name, text in _SLOT.findall(passage):
        options = tuple(dict.fromkeys(part.strip() for part in text.split("|") if part.strip()))
        if name in slots:
            raise BankError(f"slot {name!r} occurs twice")
        if name == "none":
            raise BankError("a slot may not be called `none`")
        if len(options) == 1 and options[0] not in types:
            raise BankError(f"slot {name}: {options[0]!r} is no type; alternatives need a `|`")
        slots[name] = SlotType("", options) if len(options) > 1 else SlotType(text.strip())
    if not slots or re.search(r"[{}]", _SLOT.sub("", passage)):
        raise BankError("the passage needs slots of the form {name:type} and no other braces")
    return slots


def _question(text: str, slots: dict[str, SlotType], source: str) -> Question | Template:
    """One line after the passage: a question, or the text of an unanswered one."""
    match = _LINE.fullmatch(text)
    if not match:
        raise BankError(f"expected `name: question`, got {text!r}")
    name, form, asked = match.groups()
    if "{" in asked:
        raise BankError("a question may not hold a slot")
    if name == "none":
        return compile_template(asked, _PLAIN)
    if name not in slots:
        raise BankError(f"no slot {name!r} in the passage")
    answer = compile_template(form or f"{{{name}}}", _PLAIN)
    if answer.source.lower() not in source.lower():
        raise BankError(f"the answer {answer.source!r} is no piece of the passage")
    if f"{{{name}}}" not in answer.source:
        raise BankError(f"the answer {answer.source!r} does not hold its slot")
    return Question(name, answer, compile_template(asked, _PLAIN), frozenset())


def _build(group: Sequence[Line], types: frozenset[str]) -> Block:
    origin, passage = group[0]
    passage = passage.replace("\\n", "\n")
    at = origin  # of the line at fault
    try:
        slots = _slots(passage, types)
        source = _SLOT.sub(r"{\1}", passage)
        questions: list[Question] = []
        unanswered: list[Template] = []
        for line, text in group[1:]:
            at = line
            made = _question(text, slots, source)
            if isinstance(made, Question):
                questions.append(made)
            else:
                unanswered.append(made)
        at = origin
        missing = set(slots) - {q.slot for q in questions}
        if missing:
            raise BankError(f"nobody asks for {', '.join(sorted(missing))}")
    except BankError as error:
        raise BankError(f"{at}: {error}") from error
    name = f"note_{origin.replace('.txt:', '_')}"
    statement = compile_template(source, _PLAIN)
    return Block(
        "note", name, origin, slots, (statement,), tuple(questions), unanswered=tuple(unanswered)
    )


def load_notes(
    types: frozenset[str], strict: bool = True, folder: Path = HERE
) -> tuple[Block, ...]:
    """All notes of a folder.

    Raises:
        BankError: a faulty block when `strict`; otherwise it is left out and named on standard
            output.
    """
    pages = load_pages(types, strict, folder)
    return tuple(note for page in pages for note in page.notes)


def load_pages(
    types: frozenset[str], strict: bool = True, folder: Path = PAGES
) -> tuple[Page, ...]:
    """All pages of a folder; notes before a file's first `@page` are pages without title.

    Raises:
        BankError: as `load_notes`.
    """
    return tuple(
        page for path in sorted(folder.glob("*.txt")) for page in _pages(path, types, strict)
    )


def _pages(path: Path, types: frozenset[str], strict: bool) -> Iterator[Page]:
    title, begun, notes = "", path.name, list[Block]()
    for group in _groups(path):
        origin, first = group[0]
        try:
            if first.startswith("@page"):
                if notes:
                    yield _page(title, begun, notes)
                title, begun, notes = first.removeprefix("@page").strip(), origin, []
                if not title:
                    raise BankError(f"{origin}: a page needs a title: `@page a rowing club`")
                group = group[1:]
            if group:
                notes.append(_build(group, types))
        except BankError as error:
            if strict:
                raise
            print(f"left out: {error}", flush=True)
    if notes:
        yield _page(title, begun, notes)


def _page(title: str, origin: str, notes: Sequence[Block]) -> Page:
    return Page(title, origin, tuple(notes), is_held_out_template(f"{title} {origin}"))


def main() -> None:
    """Check the files named on the command line."""
    from training.make_tokenizer import world_types

    types = world_types()
    for name in sys.argv[1:]:
        pages = list(_pages(Path(name), types, False))
        blocks = [block for page in pages for block in page.notes]
        asked = sum(len(block.questions) for block in blocks)
        titled = sum(bool(page.title) for page in pages)
        print(f"{name}: {titled} pages, {len(blocks)} notes, {asked} questions")


if __name__ == "__main__":
    main()
