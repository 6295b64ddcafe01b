from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.cli.conftest import one_json

Call = Callable[..., Result]


@pytest.fixture
def two(call: Call, docs: Path) -> str:
    for name in ("leave", "travel"):
        (docs / f"{name}.md").write_text(f"# {name}\n\nAll about {name}, in many words.\n" * 9)
        assert call("build", name, docs / f"{name}.md").exit_code == 0
    return "leave+travel"


def test_asked_measured_and_asked_again(call: Call, two: str, docs: Path) -> None:
    asked = ("ask", two, "How many days?", "--approximate", "--no-resident")
    first = one_json(call(*asked, "--json"))
    assert first["approximate"] == {"share": 0.15, "by": "first", "agreement": None}
    assert f"preread verify --approximate {two}" in first["notes"][0]
    plain = call(*asked)
    assert plain.exit_code == 0
    said = plain.stderr
    assert "note: approximate, 15 %" in said and "approximate · TTFT" in said
    questions = docs / "q.jsonl"
    questions.write_text(json.dumps({"question": "How many days?", "answer": "25"}))
    measured = one_json(call("verify", two, "--approximate", "--questions", questions, "--json"))
    assert measured["target"] == two and measured["agreement"]["questions"] == 1
    assert one_json(call(*asked, "--json"))["approximate"]["agreement"] == measured["agreement"]
    assert "every approximate answer" in call("verify", "--approximate", two).stdout
    exact = one_json(call("ask", two, "How many days?", "--no-resident", "--json"))
    assert exact["approximate"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ask", "leave", "Why?", "--approximate"), "one context"),
        (("ask", "leave+travel", "Why?", "--approximate", "-s", "talk"), "exact composition"),
        (("verify", "--approximate"), "NAME+NAME"),
        (("verify", "leave", "--approximate"), "one context"),
        (("verify", "--approximate", "--codec", "int8"), "Give one"),
        (("verify", "leave", "--questions", "q.jsonl"), "--questions goes with --approximate"),
    ],
)
def test_what_makes_no_sense(call: Call, two: str, arguments, said, capsys) -> None:  # type: ignore[no-untyped-def]
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in capsys.readouterr().err
