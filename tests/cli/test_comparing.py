from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import Result

from preread.cli.comparing import POINTS, plots, render, report
from preread.cli.plots import BOTTOM, LEFT, RIGHT, TOP
from preread.contexts.catalog.base import ContextRecord, ShardRecord
from preread.contexts.compared import Answer, ArmResult, Comparison
from preread.contexts.questions import Question
from preread.testing.backend import FakeBackend
from preread.types import Usage
from tests.cli.conftest import one_json

Call = Callable[..., Result]
WHEN = datetime(2025, 1, 2, 3, 4)
HOSTILE = "</td><script>alert('x')</script>&amp;\"{{ 7 * 7 }}"
VOID = {"meta", "line", "polyline", "rect", "circle"}


class Page(HTMLParser):
    """Refuses tags that do not match; keeps the text of every cell and the plots' places."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and {"td", "th"} & set(self.open):
            self.cells[-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def answer(
    text: str, seconds: float, correct: bool | None = True, error: str = "", computed: int = 10
) -> Answer:
    return Answer(text, correct, seconds, seconds / 2, Usage(1000, 0, computed, 3), error)


def comparison(
    *arms: ArmResult, questions: Sequence[str] = ("Who?", "When?"), name: str = "handbook"
) -> Comparison:
    shard = ShardRecord("text", (), 1000, 0, ())
    record = ContextRecord(name, 2, "fake", "fa" * 32, "", (), (shard,), 0.0, None, ())
    made = arms or (
        ArmResult("cached", 2.0, 1004, (answer("Ann", 0.25), answer("noon", 0.25, False))),
        ArmResult(
            "incontext", 0.0, 0, (answer("Ann", 1.0, computed=1010), answer("noon", 1.0, False))
        ),
        ArmResult("bm25", 0.5, 0, (answer("Bob", 0.125, False), answer("one", 0.125, False))),
    )
    return Comparison(record, FakeBackend().info, tuple(map(Question, questions)), made)


def test_the_page_shows_every_arm_question_and_number() -> None:
    page = Page(render(comparison(), WHEN))
    cells = " | ".join(" ".join(cell.split()) for cell in page.cells)
    assert "cached | 2.000 | 0.125 | 0.250 | 2.50 | 1,024 | 0 | 6 | 1 of 2" in cells
    assert "incontext | 0.000 | 0.500 | 1.000 | 2.00 | 1,020 | 0 | 6 | 1 of 2" in cells
    assert "bm25 | 0.500 | 0.062 | 0.125 | 0.75 | 20 | 0 | 6 | 0 of 2" in cells
    assert "Who? | ✓ Ann | ✓ Ann | ✗ Bob | When? | ✗ noon | ✗ noon | ✗ one" in cells
    assert "cached breaks even with incontext at 3 questions" in page.text
    assert "cached never breaks even with bm25" in page.text
    assert "the same answer to 2 of 2 questions." in page.text
    assert "handbook version 2: 2 questions, 1,000 context tokens, fake on none" in page.text
    assert "2025-01-02 03:04" in page.text


def test_the_page_needs_no_script_and_fetches_nothing() -> None:
    page = Page(render(comparison(), WHEN))
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not [a for _, attributes in page.tags for a in attributes if a in ("src", "href")]
    assert "prefers-color-scheme: dark" in page.text


def test_hostile_text_is_shown_and_not_run() -> None:
    failed = answer("", 1.0, False, error=HOSTILE)
    arms = [
        ArmResult("cached", 1.0, 5, (answer(HOSTILE, 1.0), answer("a", 1.0))),
        ArmResult("bm25", 1.0, 5, (failed, answer("a", 1.0, None))),
    ]
    html = render(comparison(*arms, questions=(HOSTILE, "b"), name=HOSTILE), WHEN)
    page = Page(html)
    assert "<script" not in html
    assert {tag for tag, _ in page.tags} <= {
        tag for tag, _ in Page(render(comparison(), WHEN)).tags
    }
    cells = [" ".join(cell.split()) for cell in page.cells]
    assert {HOSTILE, f"✓ {HOSTILE}", f"failed: {HOSTILE}", "a"} <= set(cells)


def test_the_break_even_is_marked_where_the_lines_cross() -> None:
    seconds = next(plots(comparison()))
    (mark,) = seconds.marks
    assert mark.label == "incontext: 3"
    # x reaches to ceil(1.25 * 3) = 4 questions, y to 4 s; cached costs 2.75 s after 3 questions.
    assert mark.x == LEFT + (RIGHT - LEFT) * 3 / 4
    assert mark.y == pytest.approx(BOTTOM - (BOTTOM - TOP) * 2.75 / 4, abs=0.1)
    assert [line.label for line in seconds.lines] == ["cached", "incontext", "bm25", "", "", ""]


def test_a_break_even_far_away_is_told_but_not_drawn() -> None:
    cached = ArmResult("cached", 500.0, 5, (answer("a", 0.5), answer("a", 0.5)))
    other = ArmResult("bm25", 0.0, 0, (answer("a", 1.0), answer("a", 1.0)))
    found = comparison(cached, other)
    assert found.break_even[0].questions == 1000
    seconds = next(plots(found))
    assert not seconds.marks
    assert seconds.x_ticks[-1].label == "2"
    assert "at 1,000 questions" in render(found, WHEN)


@pytest.mark.parametrize("count", [1, 2, 7, 3 * POINTS + 1])
def test_everything_is_drawn_within_its_frame(count: int) -> None:
    times = [0.1 + (i * 37 % 11) / 5 for i in range(count)]
    arms = [
        ArmResult("cached", 3.0, 50, tuple(answer("a", t / 4) for t in times)),
        ArmResult("incontext", 0.0, 0, tuple(answer("a", t) for t in times)),
    ]
    page = Page(render(comparison(*arms, questions=["q"] * count), WHEN))
    for line in page.named("polyline"):
        points = [tuple(map(float, p.split(","))) for p in (line["points"] or "").split()]
        assert 2 <= len(points) <= POINTS + 1
        assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in points)
    for rect in page.named("rect"):
        y, height = float(rect["y"] or -1), float(rect["height"] or -1)
        assert TOP <= y <= BOTTOM
        assert height >= 0
    assert len(page.named("svg")) == 3


def test_nothing_graded_gives_no_accuracy_plot() -> None:
    arm = ArmResult("cached", 1.0, 5, (answer("a", 1.0, None), answer("b", 1.0, None)))
    assert [plot.title for plot in plots(comparison(arm))] == [
        "Seconds by number of questions",
        "Tokens computed",
    ]
    assert "of 0" not in render(comparison(arm), WHEN)


def test_the_terminal_gets_table_sentences_and_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = [
        ArmResult("cached", 2.0, 1004, (answer("Ann", 0.25), answer("noon", 0.25))),
        ArmResult("incontext", 0.0, 0, (answer("Ann", 1.0), answer("one", 1.0))),
    ]
    report(comparison(*arms), tmp_path / "page.html", json=False)
    out, err = capsys.readouterr()
    assert re.search(r"^cached +2\.000 +0\.125 +0\.250 +2\.50 +1,024 +0 +6 +2 of 2$", out, re.M)
    assert "cached breaks even with incontext at 3 questions: 2 s + 0.25 s per question" in out
    assert "the same answer to 1 of 2 questions; differing: 1." in out
    assert "  2. When?\n     cached: noon\n     incontext: one\n" in out
    assert str(tmp_path / "page.html") in err
    Page((tmp_path / "page.html").read_text("utf-8"))


def test_json_is_one_object_with_the_path_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(comparison(), tmp_path / "page.html", json=True)
    (line,) = capsys.readouterr().out.splitlines()
    value = json.loads(line)
    assert value["html"] == str(tmp_path / "page.html")
    assert value["break_even"] == {"incontext": 3, "bm25": None}
    assert value["arms"]["bm25"]["answers"][0]["text"] == "Bob"


def test_a_failed_question_ends_with_code_3_after_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = ArmResult("cached", 1.0, 5, (answer("", 1.0, False, "boom"), answer("b", 1.0)))
    with pytest.raises(SystemExit) as caught:
        report(comparison(arm), tmp_path / "page.html", json=False)
    assert caught.value.code == 3
    out, err = capsys.readouterr()
    assert "1 of 2" in out
    assert "cached, question 1 failed: boom" in err


def test_results_are_not_lost_with_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        report(comparison(), tmp_path / "gone" / "page.html", json=True)
    assert caught.value.code == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["html"] is None
    assert "could not be written: No such file or directory" in err


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [{"question": "How many days of leave?", "answer": "25"}, {"question": "Who is Ann?"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "cached,rag"], "'rag'; there are: cached, incontext, bm25"),
        (["--top", "0"], "--top': 0"),
        (["--limit", "-1"], "--limit': -1"),
        (["--html", "/no/such/folder/page.html"], "/no/such/folder/page.html cannot be written"),
        (["--html", "/tmp"], "/tmp cannot be written"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_opened(
    call: Call,
    questions: Path,
    home: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = call("compare", "nothing", questions, *options)
    assert result.exit_code == 2
    assert message in capsys.readouterr().err
    assert not home.exists()


def test_faults_of_the_file_come_first_too(call: Call, questions: Path, home: Path) -> None:
    questions.write_text('{"question": "a"}\n{"qestion": "b"}\n')
    result = call("compare", "nothing", questions)
    assert result.exit_code == 2
    assert f"{questions}, line 2: qestion: " in result.message  # type: ignore[attr-defined]
    assert not home.exists()


def test_compare_on_a_model(
    call: Call, docs: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built = one_json(call("build", "handbook", docs, "--json"))
    value = one_json(call("compare", "handbook", questions, "--json"))
    cached, incontext, bm25 = (value["arms"][name] for name in ("cached", "incontext", "bm25"))
    assert cached["build_tokens"] > built["tokens"]
    assert cached["cached_tokens"] >= 2 * (built["tokens"] - 1)
    assert incontext["cached_tokens"] == bm25["cached_tokens"] == 0
    assert incontext["computed_tokens"] > 2 * built["tokens"]
    assert value["agreement"] == {"equal": 2, "differing": []}
    assert [arm["graded"] for arm in (cached, incontext, bm25)] == [1, 1, 1]
    assert value["html"] == str(tmp_path / "compare-handbook.html")
    page = Page((tmp_path / "compare-handbook.html").read_text("utf-8"))
    assert "How many days of leave?" in page.cells


def test_limit_and_html_are_obeyed(call: Call, docs: Path, questions: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    call("build", "handbook", docs)
    result = call(
        "compare", "handbook", questions, "--arms", "bm25", "--limit", "1", "--html", page
    )
    assert result.exit_code == 0, result.output
    assert ": 1 question, " in result.stdout
    assert page.exists()
