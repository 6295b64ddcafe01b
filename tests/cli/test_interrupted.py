"""A batch whose process ends while requests are on their way to somebody else's server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preread.testing.provider import Profile, Provider
from preread.testing.simulation.faults import Faults, Odds

from .test_batch import chat, served

ROWS, MOST = 8, 3  # requests under way at once, and tokens that each may write


def batch(server: Provider, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "preread", "batch", str(folder / "in.jsonl")]
    command += ["-o", str(folder / "out.jsonl"), "--backend", f"openai:{server.url}", *more]
    env = os.environ | {"PREREAD_HOME": str(folder / "home")}
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def until_sent(server: Provider, child: subprocess.Popen[str]) -> None:
    while server.faults.met["hang"] < ROWS and child.poll() is None:
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["killed", "twice"])
def test_what_was_under_way_is_on_the_next_bill(tmp_path: Path, how: str) -> None:
    messages = [[{"role": "user", "content": f"text {i} {'word ' * 40}"}] for i in range(ROWS)]
    lines = [chat(f"r{i}", "", model="simulated", messages=m) for i, m in enumerate(messages)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    profile = Profile(server="vllm", limit=4096, odds=Odds(hang=1.0))
    with served(Provider(profile, lambda prefix, text: "said")) as server:
        child = batch(server, tmp_path)
        until_sent(server, child)
        slate = tmp_path / "out.jsonl.journal-sent"
        assert slate.exists()
        if how == "killed":
            child.kill()
            child.communicate()
            assert slate.exists()
        else:
            child.send_signal(signal.SIGINT)
            time.sleep(1.0)
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=30)
            assert child.returncode == 4 and "  in doubt: at most " in said and "--resume" in said
            assert not slate.exists()
        server.faults = Faults(Odds())
        done = batch(server, tmp_path, "--resume", "--json")
        out, said = done.communicate(timeout=60)
        assert done.returncode == 0, said
    value = json.loads(out)
    assert value["run"] == ROWS and value["failed"] == 0
    sure = value["tokens"]["computed"] + value["tokens"]["output"]
    billed = server.tokens["computed"] + server.tokens["output"]  # for what it never sent, too
    assert sure < billed <= sure + value["tokens"]["unsure"]
    doubted = value["tokens"]["unsure"] - ROWS * MOST
    assert ROWS * 30 < doubted < ROWS * 90  # prompts of 40 words
    assert not slate.exists()
