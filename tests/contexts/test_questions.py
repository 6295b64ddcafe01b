from __future__ import annotations

import json
from pathlib import Path

import pytest

from preread.contexts.questions import SHOWN, Question, normal, read_questions
from preread.errors import RequestError

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("Harriet Brindle", "harriet  BRINDLE.\n"),
        ("“13:00”.", "13:00"),
        ("'Straße.'", "STRASSE"),
        ("three\tweeks!", '"Three weeks"'),
    ],
)
def test_normal_forgets_what_does_not_matter(answer: str, same: str) -> None:
    assert normal(answer) == normal(same) != ""


@pytest.mark.parametrize(
    ("a", "b"), [("1.5", "15"), ("£3", "3"), ("not 3", "3"), ("rock'n", "rock")]
)
def test_normal_keeps_what_matters(a: str, b: str) -> None:
    assert normal(a) != normal(b)


def test_a_question_is_graded_against_answer_and_also(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(
        '\ufeff{"question": "Which extension?", "answer": "231.", "also": ["Extension 231"]}\r\n'
        '\n{"question": "Why?", "answer": null}\n',
        encoding="utf-8",
    )
    first, second = read_questions(path)
    assert first == Question("Which extension?", ("231", "extension 231"))
    assert [first.grade(a) for a in ("231", '"extension  231"', "232", "")] == [1, 1, 0, 0]
    assert second.text == "Why?"
    assert second.grade("because") is None


def test_the_examples_can_be_read() -> None:
    questions = read_questions(EXAMPLES / "handbook_questions.jsonl")
    assert len(questions) == 20
    assert all(question.references for question in questions)


def test_every_fault_is_named_by_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    lines = [
        b'{"question": "fine"}',
        b'{"question": " ", "answer": 3, "also": ["x", 4], "foo": 1}',
        b'{"answer": "x"}',
        b"not json",
        b'["question"]',
        b'{"question": "a", "answer": "..."}',
        b'{"question": "a\xff"}',
        b'{"question": "\\ud800"}',
        b"[" * 100_000,
    ]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(RequestError) as caught:
        read_questions(path)
    text = str(caught.value)
    for line, field in [
        (2, "question: "),
        (2, "answer: "),
        (2, "also.1: "),
        (2, "foo: "),
        (3, "question: Field required"),
        (4, "Invalid JSON"),
        (5, "Input should be an object"),
        (6, "answer: nothing is left to compare with"),
        (7, "Invalid JSON"),
        (8, "Invalid JSON"),
        (9, "Invalid JSON"),
    ]:
        assert f"{path}, line {line}: {field}" in text
    assert "line 1:" not in text


def test_many_faults_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("{}\n" * (SHOWN + 5), encoding="utf-8")
    with pytest.raises(RequestError, match=r"line 20: [\s\S]*… and 5 more\.") as caught:
        read_questions(path)
    assert "line 21" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_questions_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(content)
    with pytest.raises(RequestError, match="holds no question"):
        read_questions(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(RequestError) as caught:
            read_questions(path)
        assert str(path) in str(caught.value)


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "a\u2028b\x85c"}, ensure_ascii=False), "utf-8")
    assert read_questions(path)[0].text == "a\u2028b\x85c"
