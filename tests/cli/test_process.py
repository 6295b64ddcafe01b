"""What only a process of its own can show: quick start, one JSON object also for errors, a resident
process that answers, and leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import preread


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["show", "x"], ["gc"], ["verify"]])
def test_quick_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nsys.argv = ['preread', *sys.argv[1:]]\n"
        "from preread.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers', 'jinja2'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stderr.strip().endswith("heavy: []"), done.stderr


def test_an_error_is_one_json_object_too() -> None:
    done = preread("show", "nobody", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "UnknownName"
    assert done.stderr.startswith("preread: ")


def test_a_resident_process_answers_and_leaves(
    tiny: Path, docs: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_MODEL_MODEL", str(tiny))
    monkeypatch.setenv("PREREAD_CONTEXT_MAX_TOKENS", "8")
    up = preread("up", "--json")
    assert up.returncode == 0, up.stderr
    running = json.loads(up.stdout)
    assert running["pid"] > 0 and running["model"] == str(tiny)
    assert (home / "resident.sock").stat().st_mode & 0o077 == 0
    again = json.loads(preread("up", "--json").stdout)
    assert again["pid"] == running["pid"]
    first = preread("ask", docs, "How many days?", "--json")
    here = preread("ask", docs, "How many days?", "--json", "--no-resident")
    assert first.returncode == here.returncode == 0, first.stderr + here.stderr
    answers = [json.loads(done.stdout)["answer"] for done in (first, here)]
    assert answers[0] == answers[1]
    wrong = preread("ask", "nobody", "Who?", "--json")
    assert wrong.returncode == 2 and "nobody" in json.loads(wrong.stdout)["error"]["message"]
    assert json.loads(preread("down", "--json").stdout) == {"stopped": True}
    assert json.loads(preread("up", "--json").stdout)["pid"] != running["pid"]  # at once
    assert json.loads(preread("down", "--json").stdout) == {"stopped": True}
    assert json.loads(preread("down", "--json").stdout) == {"stopped": False}


def test_a_dead_resident_process_is_not_waited_for(
    tiny: Path, docs: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setenv("PREREAD_MODEL_MODEL", str(tiny))
    monkeypatch.setenv("PREREAD_CONTEXT_MAX_TOKENS", "4")
    home.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:  # a socket file nobody listens on
        stale.bind(str(home / "resident.sock"))
    done = preread("ask", docs, "Who?", "--json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flag", ["--json", ""])
def test_ctrl_c_is_130_and_still_one_object(tmp_path: Path, flag: str) -> None:
    code = (
        "import signal, sys\nfrom preread.cli import main, managing\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "managing.list_command = lambda json: signal.raise_signal(signal.SIGINT)\n"
        "sys.argv = ['preread', 'list', *filter(None, sys.argv[1:])]\nmain.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True)
    assert done.returncode == 130 and "Ctrl-C" in done.stderr and "Traceback" not in done.stderr
    assert [json.loads(line)["error"]["exit_code"] for line in done.stdout.splitlines()] == (
        [130] if flag else []
    )


def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "preread", "show", "nobody", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode != 0 and "Traceback" not in done.stderr
