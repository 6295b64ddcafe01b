"""The bank's parser and its rules."""

from pathlib import Path

import pytest

from tests.training import shipped
from training.bank import Bank, BankError, load_bank
from training.templates import compile_template, make_synonyms
from training.world import World

TYPES = frozenset({"person", "duration", "product"})
GOOD = """@policy repair
slot who: person
slot span: duration
p: {who} repairs pumps in {span}.
q who: Who repairs pumps?
q span: How long does it take?
"""


def load(tmp_path: Path, text: str, strict: bool = True) -> Bank:
    (tmp_path / "bank").mkdir(exist_ok=True)
    (tmp_path / "bank" / "x.txt").write_text(text, encoding="utf-8")
    return load_bank(TYPES, strict, tmp_path)


def test_a_policy_is_read(tmp_path: Path) -> None:
    (block,) = load(tmp_path, GOOD).policies
    assert set(block.slots) == {"who", "span"} and len(block.questions) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{who} repairs pumps in {span}.", "{who} repairs pumps.", "every slot once"),
        ("q who: Who", "q whom: Who", "unknown slot"),
        ("q who: Who repairs", "q who: Who is {who} and repairs", "gives its own answer"),
        ("slot who: person", "slot who: wizard", "unknown type"),
        ("q span: How", "q span = {span} days: How", "answer"),
        ("@policy repair", "@polity repair", "unknown directive"),
    ],
)
def test_a_broken_rule_names_file_and_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(BankError, match=message) as error:
        load(tmp_path, GOOD.replace(old, new))
    assert str(error.value).startswith("x.txt:")


def test_a_line_outside_of_any_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="outside of any block"):
        load(tmp_path, "p: Nobody owns me.")


def test_the_bank_holds_blocks_of_every_kind() -> None:
    bank = shipped.bank()
    assert (
        len(bank.policies) > 100
        and len(bank.facts) > 50
        and len(bank.schemas) > 50
        and bank.fillers
    )


def test_synonyms_respect_the_article_before_them() -> None:
    template = compile_template(
        "Give it to a worker.", make_synonyms([["worker", "employee", "labourer"]])
    )
    import random

    seen = {template.render({}, random.Random(seed), 1.0) for seed in range(30)}
    assert seen == {"Give it to a worker.", "Give it to a labourer."}


def test_every_type_of_the_readme_can_be_drawn() -> None:
    import random

    world = World(random.Random(1), shipped.bank())
    readme = (Path(__file__).parents[2] / "training" / "bank" / "README.md").read_text(
        encoding="utf-8"
    )
    values = readme.split("## Value types\n")[1].split(".\n")[0]
    import re

    names = [part.strip() for part in re.sub(r"\([^)]*\)", "", values).split(",")]
    assert names and all(world.draw(name) for name in names)
