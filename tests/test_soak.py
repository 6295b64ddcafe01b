"""The soak runs and ends as it says; `make soak` gives it twenty minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_small_soak() -> None:
    short = ["--rounds", "2", "--moves", "30", "--device", "cpu", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, "tools/soak.py", *short],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ok"] and said["rounds"] == 2 and said["rows"] > 20 and said["steps"] > 60
