"""`preread batch`: from files to files, its exit codes, and what it says."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from preread.backend import RequestBatch, ResultBatch
from preread.batch.bodies import Defaults
from preread.batch.forms import OpenAILines
from preread.batch.openai import BatchFile
from preread.batch.tally import Tally
from preread.bridge import LoopThread
from preread.cli.batching import Batch, Opened, Options
from preread.cli.progress import line
from preread.prices import Prices
from preread.testing.instant import InstantBackend
from preread.testing.provider import Profile, Provider

from .conftest import one_json

Call = Callable[..., Result]
RULES = "Say what the text is about. " * 20


def chat(name: str, text: str, **body: Any) -> str:
    messages = [{"role": "system", "content": RULES}, {"role": "user", "content": text}]
    made = {"model": "any", "max_tokens": 3, "messages": messages} | body
    return json.dumps(
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": made}
    )


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(chat(f"r{i}", f"text {i % 4}") for i in range(6)) + "\n")
    return path


def test_a_batch_file_is_answered(call: Call, tiny: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    value = one_json(call("batch", lines, "-o", out, "-m", tiny, "--json",
                          "--report", tmp_path / "bill.json"))  # fmt: skip
    told = [json.loads(text) for text in out.read_text().splitlines()]
    assert [row["custom_id"] for row in told] == [f"r{i}" for i in range(6)]
    assert told[0]["response"]["body"]["model"] == str(tiny)
    assert value["requests"] == 6 and value["run"] == 4 and value["twins"] == 2
    tokens = value["tokens"]
    assert tokens["cached"] > tokens["computed"] > 0 and tokens["output"] == 12
    assert value["predicted"][0]["requests"] == 4
    bill = json.loads((tmp_path / "bill.json").read_text())
    assert bill["tokens"] == tokens
    assert call("batch", lines, "-o", out, "-m", tiny, "--resume").exit_code == 0


def test_a_table_is_answered(call: Call, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("name,text\nAnn,sails\nBob,rows\n")
    (tmp_path / "rules.md").write_text(RULES)
    out = tmp_path / "out.csv"
    done = call("batch", tmp_path / "in.csv", "-o", out, "--prompt", tmp_path / "rules.md",
                "--item", "{name}: {text}", "--max-tokens", "2")  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["name"] for row in rows] == ["Ann", "Bob"] and {row["error"] for row in rows} == {
        ""
    }
    assert "2 requests, 0 failed" in done.output and "% cached" in done.output


def test_a_dry_run_says_what_it_would_take_and_leaves_nothing(
    call: Call, tiny: Path, lines: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.iterdir())
    done = call("batch", lines, "-o", tmp_path / "out.jsonl", "-m", tiny, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "6 requests; 2 are equal to others" in done.output and "Say what the text" in done.output
    value = one_json(call("batch", lines, "-m", tiny, "--dry-run", "--json"))  # needs no output
    (model,) = value["models"]
    assert model["prompt"] == model["cached"] + model["computed"] and model["output"] == 12
    assert {path for path in tmp_path.iterdir() if path.name != "home"} == before - {
        tmp_path / "home"
    }


def test_a_run_needs_an_output(call: Call, tiny: Path, lines: Path) -> None:
    done = call("batch", lines, "-m", tiny)
    assert done.exit_code == 2 and "-o answers.jsonl" in done.message  # type: ignore[attr-defined]


def test_what_was_foreseen_is_what_came(call: Call, tiny: Path, tmp_path: Path) -> None:
    """Within a few percent, on rows of about the same length."""
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(chat(f"r{i}", f"text number {i:04d}") for i in range(300)) + "\n")
    value = one_json(call("batch", path, "-o", tmp_path / "o.jsonl", "-m", tiny, "--json"))
    (foreseen,), tokens = value["predicted"], value["tokens"]
    assert foreseen["prompt"] == pytest.approx(tokens["prompt"], rel=0.03)
    assert foreseen["cached"] == pytest.approx(tokens["cached"], rel=0.05)


def test_failed_rows_are_told_by_the_exit_code(call: Call, tiny: Path, tmp_path: Path) -> None:
    bad = {"custom_id": "bad", "method": "POST", "url": "/v1/completions",
           "body": {"model": "any", "prompt": "many words " * 5000}}  # fmt: skip
    path = tmp_path / "in.jsonl"
    path.write_text(f"{chat('good', 'x')}\n{json.dumps(bad)}\n")
    done = call("batch", path, "-o", tmp_path / "out.jsonl", "-m", tiny)
    assert done.exit_code == 3, done.output
    (wrong,) = (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()
    assert json.loads(wrong)["custom_id"] == "bad"
    assert json.loads((tmp_path / "out.jsonl").read_text())["custom_id"] == "good"


def test_what_the_model_cannot_be_asked_is_refused_before_anything_runs(
    call: Call, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"type": "json_schema", "json_schema": {"schema": {"type": "no such type"}}}
    path = tmp_path / "in.jsonl"
    path.write_text(f"{chat('good', 'x')}\n{chat('bad', 'x', response_format=bad)}\n")
    for more in ([], ["--cache"], ["--dry-run"]):
        done = call("batch", path, "-o", tmp_path / "out.jsonl", "-m", tiny, *more)
        assert done.exit_code == 2
        assert f"{path}:2: request: schema: Invalid type" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_that_do_not_fit_are_refused_before_anything_runs(
    call: Call, tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f"{chat('short', 'x')}\n{chat('long', 'many words ' * 5000)}\n")
    done = call("batch", path, "-o", tmp_path / "out.jsonl", "-m", tiny)
    assert done.exit_code == 2
    assert f"{path}:2: prompt: " in done.message and "tokens" in done.message  # type: ignore[attr-defined]
    assert not (tmp_path / "out.jsonl").exists()


def test_budgets_and_orders(call: Call, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(chat(f"r{i}", f"text {i}") for i in range(40)) + "\n")
    out, how = tmp_path / "out.jsonl", ["-m", tiny, "--order", "completion"]
    done = call("batch", path, "-o", out, *how, "--budget-tokens", "1000")
    assert done.exit_code == 4 and "used up; give a larger one" in done.output
    some = out.read_text().splitlines()
    assert 0 < len(some) < 40
    assert call("batch", path, "-o", out, *how, "--resume").exit_code == 0
    every = out.read_text().splitlines()
    assert every[: len(some)] == some and len(every) == 40
    assert len({json.loads(line)["custom_id"] for line in every}) == 40
    paid = call("batch", path, "-o", tmp_path / "p.jsonl", "-m", tiny, "--budget-money", "1")
    assert paid.exit_code == 2 and "no prices" in paid.message  # type: ignore[attr-defined]


def test_wrong_calls(call: Call, tiny: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert call("batch", tmp_path / "none.jsonl", "-o", out).exit_code == 2
    assert call("batch", lines, "-o", tmp_path / "no" / "out.jsonl").exit_code == 2
    assert call("batch", lines, "-o", out, "--prompt", lines, "--format", "openai").exit_code == 2
    assert call("batch", lines, "-o", lines).exit_code == 2
    for command in ("batch", "score"):
        piped = call(command, lines, "-o", "-")
        assert piped.exit_code == 2 and "-o" in str(piped.message)  # type: ignore[attr-defined]
    assert call("batch", lines, "-o", out, "--report", "-").exit_code == 2
    (tmp_path / "in.csv").write_text("a\nb\n")
    assert call("batch", tmp_path / "in.csv", "-o", tmp_path / "o.txt").exit_code == 2
    assert call("batch", tmp_path / "in.csv", lines, "-o", out).exit_code == 2


class Interrupting(InstantBackend):
    """Presses Ctrl-C once, after some rows."""

    def __init__(self) -> None:
        super().__init__(
            piece=64, pause_s=0.01, prices=Prices(1.0, 0.1, 1.25, 2.0, as_of="2026-11-21")
        )
        self.pressed = False

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        async for news in super().submit(batch):
            yield news
            if self.rows > 200 and not self.pressed:
                self.pressed = True
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.2)


def test_ctrl_c_lets_what_runs_end_and_the_rest_goes_on_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, loop, backend = tmp_path / "in.jsonl", LoopThread(), Interrupting()
    handler = signal.getsignal(signal.SIGINT)
    path.write_text("\n".join(chat(f"r{i}", f"text {i}") for i in range(4000)) + "\n")

    @contextmanager
    def opened(model: str) -> Iterator[Opened]:
        yield Opened(backend, loop.run)

    def run(**how: bool) -> int:
        options = Options(tmp_path / "out.jsonl", **how)
        table = BatchFile([str(path)], Defaults())
        form = lambda journal: OpenAILines(journal, int(journal.get("began")))  # noqa: E731
        code, _ = Batch(table, options, form, opened).run()
        return code

    assert run() == 4
    said = capsys.readouterr().err
    assert "SIGINT" in said and "--resume" in said and "USD" in said
    assert not (tmp_path / "out.jsonl").exists() and 200 < backend.rows < 4000
    assert run(resume=True) == 0
    assert backend.rows == 4000 == len((tmp_path / "out.jsonl").read_text().splitlines())
    assert signal.getsignal(signal.SIGINT) == handler
    loop.stop()


def test_the_line_of_progress() -> None:
    tally = Tally(100, done=50, failed=2, now=50, cached=900, computed=100, began=0.0,
                  prices=Prices(1, 1, 1, 1), money=0.5)  # fmt: skip
    said = line(tally)
    assert said.startswith("50 of 100 · ") and "90.0% cached" in said
    assert said.endswith("left · 2 failed · 0.5000 USD")


def test_somebody_elses_server(call: Call, tmp_path: Path) -> None:
    """Over real HTTP to the simulated provider: rules are read once, rows cached, limits kept."""
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(chat(f"r{i}", f"text {i}", model="simulated") for i in range(40)))
    profile = Profile(server="vllm", limit=4096, min_prefix=16, block=16)
    with served(Provider(profile, lambda prefix, text: f"said {text}")) as server:
        value = one_json(call("batch", path, "-o", tmp_path / "out.jsonl", "--json",
                              "--backend", f"openai:{server.url}"))  # fmt: skip
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    said = [line["response"]["body"]["choices"][0]["message"]["content"] for line in told]
    assert said == [f"said text {i}" for i in range(40)]
    assert value["failed"] == 0 and value["hit_rate"] > 0.8


@contextmanager
def served(server: Provider) -> Iterator[Provider]:
    loop = LoopThread()
    loop.run(server.start())
    try:
        yield server
    finally:
        loop.run(server.stop())
        loop.stop()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    path.write_text("a\nx\n")
    (tmp_path / "rules.html").write_text(RULES)
    (tmp_path / "folder").mkdir()
    return path


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (["--error-file", "/dev/null"], "is no file"),
        (["--report", "folder"], "is no file"),
        (["-o", "missing/out.csv"], "no such folder. Give another --output"),
        (["--report", "missing/r"], "no such folder. Give another --report"),
        (["--error-file", "missing/e"], "no such folder. Give another --error-file"),
        (["--error-file", "out.csv"], "both --output and --error-file"),
        (["--journal", "out.csv"], "both --output and --journal"),
        (["--report", "linked.csv"], "is an input"),
        (["--report", "rules.html"], "is an input"),
        (["--fresh", "--resume"], "Give one of them"),
    ],
)
def test_no_file_is_lost_to_another(
    call: Call, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], how: list[str], told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    os.link(table, "linked.csv")
    done = call("batch", table, "--prompt", "rules.html", "-o", "out.csv", *how)
    assert done.exit_code == 2 and told in capsys.readouterr().err
    assert table.read_text() == "a\nx\n" and (tmp_path / "rules.html").read_text() == RULES
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("html", ["in.csv", "rules.html", "scores.csv", "missing/page.html"])
def test_the_page_takes_no_files_place(
    call: Call, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], html: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = call("score", table, "--rubric", "rules.html", "--labels", "yes,no", "-o", "scores.csv",
                "--html", html)  # fmt: skip
    assert done.exit_code == 2 and "--html" in capsys.readouterr().err
    assert table.read_text() == "a\nx\n" and (tmp_path / "rules.html").read_text() == RULES


@pytest.mark.parametrize(
    "budget",
    [("--budget-money", "nan"), ("--budget-money", "0"), ("--budget-money", "-1"),
     ("--budget-tokens", "0")],
)  # fmt: skip
def test_a_budget_of_nothing_is_not_no_budget(
    call: Call, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    budget: tuple[str, str],
) -> None:  # fmt: skip
    done = call("batch", table, "-o", tmp_path / "o.csv", *budget)
    assert done.exit_code == 2 and budget[0] in capsys.readouterr().err
    assert not (tmp_path / "o.csv").exists()


def test_rows_without_a_column_are_rows(call: Call, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n{}\n")
    out = tmp_path / "out.jsonl"
    done = call("batch", tmp_path / "in.jsonl", "--item", "Say yes.", "-o", out)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["answer", "error", "finish_reason"]] * 2


def test_a_run_that_was_never_begun_is_said(
    call: Call, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong name of the output would cost the whole run a second time, unseen."""
    out = tmp_path / "o.csv"
    for told in (True, False):
        done = call("batch", table, "-o", out, "--max-tokens", "1", "--resume")
        said = done.output + capsys.readouterr().err
        assert done.exit_code == 0 and ("holds no run to go on with" in said) is told, said


@pytest.mark.parametrize("option", [
    ("--max-tokens", str(2**31)), ("--temperature", "nan"), ("--temperature", "3"),
    ("--seed", str(2**63)),
])  # fmt: skip
def test_options_that_no_row_could_be_answered_with(
    call: Call, table: Path, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    option: tuple[str, str],
) -> None:  # fmt: skip
    for source in (table, lines):
        done = call("batch", source, "-o", tmp_path / f"o{source.suffix}", *option)
        assert done.exit_code == 2 and f"{option[0]}: " in capsys.readouterr().err
    assert not [*tmp_path.glob("o.*")]


def test_json_lines_are_not_called_a_table(
    call: Call, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call("batch", lines, "-o", tmp_path / "o.csv")
    assert done.exit_code == 2 and "Name it .jsonl" in capsys.readouterr().err
