"""kill -9 at random moments: every row exactly once, the output that of an undisturbed run."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from .killed import ROWS
from .made import chat, objects, written

ROOT = Path(__file__).parents[2]


def test_a_run_survives_being_killed_at_any_moment(tmp_path: Path) -> None:
    lines = [
        chat(f"r{i}", f"{'fail' if i % 97 == 5 else 'candidate'} {i}", f"Rubric {i % 7}. " * 50)
        for i in range(ROWS)
    ]
    source = written(tmp_path / "in.jsonl", lines)
    command = [sys.executable, "-m", "tests.batch.killed", str(source), "100", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("killed 100 times"), done.stdout


def test_the_bundled_model_gives_the_same_answers_after_being_killed(tmp_path: Path) -> None:
    """Law 1: what was computed in another process and company is the same text."""
    rules = "Answer with the name of the harbour in the text. " * 30
    lines = [
        chat(f"r{i}", f"Ship {i} lies in harbour {'ABCDE'[i % 5]}{i * 7}.", rules, model="reader")
        for i in range(60)
    ]
    source = written(tmp_path / "in.jsonl", lines)
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert preread(source, whole).wait(120) == 0
    kills = 0
    while not killed.exists():
        child = preread(source, killed, "--resume")
        with suppress(subprocess.TimeoutExpired):
            journal = killed.with_name("killed.jsonl.journal")
            while child.poll() is None and not journal.exists():
                time.sleep(0.05)
            child.wait(0.5 * (kills + 1) if kills < 3 else 120)
        kills += child.poll() is None
        child.kill()
        child.wait()
    assert kills
    assert answers(killed) == answers(whole) and len(answers(whole)) == 60


def preread(source: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "preread", "batch", str(source), "-o", str(output), *more]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def answers(path: Path) -> list[tuple[str, str]]:
    return [
        (line["custom_id"], line["response"]["body"]["choices"][0]["message"]["content"])
        for line in objects(path)
    ]
