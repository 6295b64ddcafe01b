"""The longest benchmark comes to its last line; the others are quick to try by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_small_whole_job() -> None:
    small = ["tiny", "--device", "cpu", "--requests", "50", "--prefix", "300", "--lists", "20"]
    done = subprocess.run(
        [sys.executable, "benchmarks/whole_job.py", *small],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["job"]["requests"] == 50 and said["lists"]["requests"] == 20
    assert 0 <= said["limit_s"] < said["job"]["s"]
