"""The soak runs and ends as it says; `make soak` gives it twenty minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from preread.backend import Ragged
from preread.tokens.batch import GenerateSpec
from preread.types import GREEDY, Finish

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


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("ahead", [0, 2])
def test_only_a_recorded_step_may_read_the_token_at_which_the_model_raises(
    monkeypatch: pytest.MonkeyPatch, device: str, ahead: int
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import soak_jobs as soak

    judge = soak.Judge(wide=SimpleNamespace(device=torch.device(device)), slack=0.0)
    monkeypatch.setattr(judge.__class__, "_either", lambda *args: False)
    own = Ragged(np.arange(3, dtype=np.int32), np.array([0, 3]))
    batch: Any = SimpleNamespace(
        head=lambda row: [], own=own, spec=GenerateSpec(9, GREEDY), context=[0]
    )
    tokens = [4, soak.POISON, *range(ahead)]
    on = soak.Row(tokens, finish=Finish.LENGTH, usage=(0, 0, 3, 2 + ahead))
    failed = soak.Row([4, soak.POISON], finish=Finish.ERROR)
    allowed = device == "cuda"
    assert (judge.wrong(batch, 0, on, failed) == "") is allowed
    assert (judge.wrong(batch, 0, failed, on) == "") is allowed
    other = soak.Row([5, soak.POISON], finish=Finish.ERROR)
    assert judge.wrong(batch, 0, on, other), "another token was written before it"
    early = soak.Row([4], finish=Finish.ERROR)
    long = soak.Row([4, 6, 7], finish=Finish.LENGTH)
    assert judge.wrong(batch, 0, long, early), "it never came to that token"
