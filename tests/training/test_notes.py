"""Notes: their format, and the exchange of words."""

import random
from pathlib import Path

import pytest

from tests.training import shipped
from training.bank import BankError
from training.make_tokenizer import world_types
from training.notes import PAGES, load_notes, load_pages
from training.skills.pages import page
from training.skills.rename import Renaming, draw, stems
from training.skills.told import note
from training.unit import NOT_STATED
from training.world import World

GOOD = """# a comment
The hall opens at {open:time}. Late comers ring {door:at the boiler room|by the green door}.
open: When does the hall open?
door = ring {door}: What do late comers have to do?
none: Who cleans the hall?
"""


def load(folder: Path, text: str, strict: bool = True) -> list[str]:
    (folder / "x.txt").write_text(text, encoding="utf-8")
    notes = load_notes(world_types(), strict, folder)
    return [statement.source for block in notes for statement in block.statements]


def test_a_note_is_read(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD) == ["The hall opens at {open}. Late comers ring {door}."]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{open:time}", "{open:wizard}", "x.txt:2: slot open: 'wizard' is no type"),
        ("{open:time}", "{door:time}", "x.txt:2: slot 'door' occurs twice"),
        ("{open:time}", "{open}", "x.txt:2: the passage needs slots"),
        ("open: When", "shut: When", "x.txt:3: no slot 'shut'"),
        ("open: When", "open When", "x.txt:3: expected `name: question`"),
        ("open: When does", "open: Is {open} when", "x.txt:3: a question may not hold a slot"),
        ("= ring {door}", "= call {door}", "x.txt:4: the answer 'call {door}' is no piece"),
        ("open: When does the hall open?\n", "", "x.txt:2: nobody asks for open"),
    ],
)
def test_a_fault_names_file_and_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(BankError) as error:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert str(error.value).startswith(message)


def test_a_faulty_note_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(load(tmp_path, GOOD.replace("time", "wizard") + "\n" + GOOD, strict=False)) == 1
    assert "left out: x.txt:2" in capsys.readouterr().out


def test_the_shipped_notes_are_without_fault() -> None:
    assert len(load_notes(world_types())) > 1000


def test_words_are_exchanged_alike_in_passage_and_question() -> None:
    renaming = Renaming({"open": "grell", "gate": "bove"})
    assert renaming("The gate opens at 9; opening is loud.") == (
        "The bove grells at 9; grelling is loud."
    )
    assert renaming("When do they open the Gates?") == "When do they grell the Boves?"
    assert renaming.breaks("The gate opens at 9.", "When can I get in?")
    assert not renaming.breaks("The gate opens at 9.", "When do you open?")


def test_only_words_that_a_question_uses_are_sure_to_be_exchanged() -> None:
    passage, rng = "The shepherd counts the lambs behind the chapel.", random.Random(1)
    for _ in range(20):
        made = draw(["Who counts lambs?"], passage, rng, lambda: "zub", ())
        assert set(made.words) & {"count", "lamb"} and set(made.words) <= stems(passage)
        assert set(made.words.values()) == {"zub"}


@pytest.mark.parametrize("held_out", [False, True])
def test_answers_stand_in_the_passage_also_after_the_exchange(held_out: bool) -> None:
    bank, checked = shipped.bank(), 0
    for seed in range(150):
        world = World(random.Random(seed), bank, held_out)
        world.renamed = 1.0
        unit = note(world)
        if unit is None:
            continue
        for ask in unit.asks:
            for turn in ask(world.rng):
                checked += 1
                assert turn.answer.lower() in " ".join(unit.text.lower().split())
        for ask in unit.missing:
            assert [turn.answer for turn in ask(world.rng)] == [NOT_STATED]
    assert checked > 200


PAGE = f"""@page a swimming club

{GOOD.partition(chr(10))[2]}
@page a chess club

The club meets on {{day:weekday}}.
day: On which day does the chess club meet?
"""


def test_a_page_is_a_run_of_notes(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(PAGE, encoding="utf-8")
    pages = load_pages(world_types(), True, tmp_path)
    assert [(p.title, len(p.notes)) for p in pages] == [("a swimming club", 1), ("a chess club", 1)]
    (tmp_path / "x.txt").write_text(PAGE.replace(" a chess club", ""), encoding="utf-8")
    with pytest.raises(BankError, match="a page needs a title"):
        load_pages(world_types(), True, tmp_path)


def test_the_shipped_pages_are_without_fault() -> None:
    assert len(load_pages(world_types(), True, PAGES)) > 50


def test_what_a_page_leaves_out_is_not_stated() -> None:
    bank, missed = shipped.bank(), 0
    for seed in range(60):
        world = World(random.Random(seed), bank)
        unit = page(world)
        assert unit is not None
        text = " ".join(unit.text.lower().split())
        for ask in unit.asks:
            for turn in ask(world.rng):
                assert turn.answer.lower() in text
        for ask in unit.missing:
            missed += 1
            assert [turn.answer for turn in ask(world.rng)] == [NOT_STATED]
    assert missed > 60


def test_a_page_fits_the_room_that_is_left() -> None:
    bank = shipped.bank()
    sizes = []
    for room in (600, 10_000):
        world = World(random.Random(3), bank)
        world.room = room
        unit = page(world)
        assert unit is not None
        sizes.append(len(unit.text))
    assert sizes[0] < 2_000 < sizes[1]
