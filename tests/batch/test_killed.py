"""kill -9 at random moments: every row exactly once, the output that of an undisturbed run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .killed import ROWS
from .made import chat, written

ROOT = Path(__file__).parents[2]


def test_a_run_survives_being_killed_at_any_moment(tmp_path: Path) -> None:
    lines = [
        chat(f"r{i}", f"{'fail' if i % 97 == 5 else 'candidate'} {i}", f"Rubric {i % 7}. " * 50)
        for i in range(ROWS)
    ]
    source = written(tmp_path / "in.jsonl", lines)
    command = [sys.executable, "-m", "tests.batch.killed", str(source), "100", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("killed 100 times"), done.stdout
