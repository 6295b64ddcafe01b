"""`preread serve` as a process of its own: it says where it listens, sees what others build, and
ends when it is told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import preread

from .conftest import Served

ASK = {"messages": [{"role": "user", "content": "Who is asked?"}], "max_tokens": 6}


@contextmanager
def process(tiny: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, "-m", "preread", "serve", "-m", str(tiny), "--json", *arguments]
    env = os.environ | {"PREREAD_MODEL_DTYPE": "float32"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env) as child:
        try:
            assert child.stdout is not None
            yield child, json.loads(child.stdout.readline())
        finally:
            child.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(
    engine: preread.Engine, tiny: Path, docs: Path, number: signal.Signals
) -> None:
    with process(tiny, "--port", "0", "--name", "tiny") as (child, said):
        assert said["pid"] == child.pid and said["contexts"] == 0
        served = Served(engine, said["url"])
        assert [m["id"] for m in served.get("/models")[1]["data"]] == ["tiny"]
        handbook = engine.context("handbook", docs)  # by another process
        status, told = served.post("/chat/completions", {**ASK, "model": "handbook"})
        want = handbook.ask("Who is asked?", max_tokens=6)
        assert status == 200 and told["choices"][0]["message"]["content"] == want.text
        assert told["usage"]["prompt_tokens_details"]["cached_tokens"] > 0  # of another's reading
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 0 and not out, err


def test_a_second_ctrl_c_waits_for_nobody(engine: preread.Engine, tiny: Path) -> None:
    with process(tiny, "--port", "0", "--name", "tiny") as (child, said):
        endless = {**ASK, "model": "tiny", "max_tokens": 3000, "ignore_eos": True, "stream": True}
        data = json.dumps(endless).encode()
        sent = urllib.request.Request(
            f"{said['url']}/chat/completions", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(sent, timeout=60) as answer:
            assert answer.readline().startswith(b"data: ")
            child.send_signal(signal.SIGINT)
            assert child.stderr is not None and "ending" in child.stderr.readline()
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=60)
    assert child.returncode == 130


def test_contexts_that_no_key_asks_are_said(
    engine: preread.Engine, tiny: Path, docs: Path, tmp_path: Path
) -> None:
    engine.context("handbook", docs)
    keys = tmp_path / "keys.txt"
    keys.write_text(f"red:{'r' * 32}\n")
    keys.chmod(0o600)
    with process(tiny, "--port", "0", "--keys", str(keys)) as (child, said):
        assert said["contexts"] == 0
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=60)
    assert "no key is of tenant 'default'" in err and "PREREAD_STORE_TENANT=red" in err


def test_a_wrong_call_is_told(tiny: Path) -> None:
    command = [sys.executable, "-m", "preread", "serve", "-m", str(tiny), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "PREREAD_SERVER_KEY" in done.stderr and not done.stdout
