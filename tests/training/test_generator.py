"""What every generated conversation must keep."""

import random
from pathlib import Path

import pytest

from tests.training.shipped import bank
from training.chat_format import CHAT_TEMPLATE, render
from training.documents import Conversation, Message, Plan, make_conversation
from training.handbooks import loose, normal
from training.unit import NOT_STATED
from training.values import CLOSED, Values, is_held_out

COPIED = {"note", "page", "policy", "schema", "event", "fact", "two-hop", "comparison"}


def conversations(count: int, held_out: bool = False, skill: str = "") -> list[Conversation]:
    rng = random.Random(11)
    made = (make_conversation(rng, bank(), Plan(1500, 8, skill), held_out) for _ in range(count))
    return [c for c in made if c]


def test_answers_stand_in_the_document() -> None:
    checked = 0
    for conversation in conversations(60):
        text = " ".join(
            " ".join(m.content for m in conversation.messages if m.role != "assistant")
            .lower()
            .replace("*", "")
            .replace("`", "")
            .replace("__", "")
            .split()
        )
        answers = [m.content for m in conversation.messages if m.role == "assistant"]
        for skill, answer in zip(conversation.skills, answers, strict=True):
            if skill in COPIED:
                checked += 1
                assert answer.lower().removeprefix("the ") in text, (skill, answer)
            if skill == "unanswerable":
                assert answer == NOT_STATED
    assert checked > 150


@pytest.mark.parametrize("held_out", [False, True])
def test_values_stay_on_their_side(held_out: bool) -> None:
    values = Values(random.Random(3), held_out)
    for kind in sorted(values.types() - CLOSED - {"ordinal", "small", "percent"}):
        drawn = [values.draw(kind) for _ in range(20)]
        assert all(is_held_out(value) == held_out for value in drawn), kind


def test_the_generator_is_reproducible() -> None:
    assert conversations(5) == conversations(5)


def test_held_out_phrasings_are_never_trained_on() -> None:
    held = {
        q.text.source
        for b in bank().policies
        for q in b.questions
        if q.text.held_out and "{" not in q.text.source and "," not in q.text.source
    }
    assert len(held) > 100
    asked = {m.content for c in conversations(80) for m in c.messages if m.role == "user"}
    assert not asked & held


def test_no_document_states_two_policies_on_one_topic() -> None:
    rivals = bank().rivals
    assert any(rivals.values())
    for name, others in rivals.items():
        assert all(name in rivals[other] for other in others)


def test_the_template_gives_the_training_format() -> None:
    jinja2 = pytest.importorskip("jinja2")
    messages = [
        Message("system", "s"),
        Message("user", "u"),
        Message("assistant", "a"),
        Message("user", "v"),
    ]
    rows = [{"role": m.role, "content": m.content} for m in messages]
    template = jinja2.Environment().from_string(CHAT_TEMPLATE)
    for prompt in (False, True):
        assert template.render(messages=rows, add_generation_prompt=prompt) == render(
            messages, prompt
        )


def test_normal_forms() -> None:
    assert normal(" Two  Weeks. ") == "two weeks"
    assert loose("on the first floor") == loose("First floor!")


def test_evaluation_texts_are_not_in_the_bank() -> None:
    folder = Path(__file__).parents[2] / "training"
    language = " ".join(
        p.read_text(encoding="utf-8")
        for name in ("bank", "schemas", "words", "notes", "pages")
        for p in (folder / name).glob("*.txt")
    )
    for name in ("Tarnwick", "Lorimer", "Brightwell", "Kalvex", "Radix"):
        assert name not in language
