from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.cli.conftest import one_json

Call = Callable[..., Result]


@pytest.mark.parametrize("key", ["", "ab12" * 16], ids=["plain", "sealed"])
def test_another_machine_answers_without_reading(
    call: Call, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    if key:
        monkeypatch.setenv("PREREAD_KEY", key)
    file = tmp_path / "handbook.tar"
    call("build", "handbook", docs)
    first = one_json(call("ask", "handbook", "How many days?", "--json"))
    out = one_json(call("export", "handbook", file, "--json"))
    assert out["chunks"] > 0 == out["missing"] and (out["sealed"] > 0) == bool(key)
    monkeypatch.setenv("PREREAD_HOME", str(tmp_path / "elsewhere"))
    shutil.rmtree(docs)  # neither are the documents there
    taken = one_json(call("import", file, "--json"))
    assert (taken["name"], taken["version"], taken["notes"]) == ("handbook", 1, [])
    again = one_json(call("ask", "handbook", "How many days?", "--json"))
    assert again["answer"] == first["answer"] and again["timing"]["load_ms"] > 0
    assert again["usage"] == first["usage"]
    assert again["usage"]["cached_tokens"] == again["usage"]["context_tokens"]


def test_what_is_said(
    call: Call, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "handbook.tar"
    call("build", "handbook", docs)
    said = call("export", "handbook", file)
    assert "handbook, version 1" in said.stdout and "chunks" in said.stdout
    monkeypatch.setenv("PREREAD_KEY", "ab12" * 16)
    monkeypatch.setenv("PREREAD_HOME", str(tmp_path / "elsewhere"))
    taken = call("import", file)
    assert "chunks taken in" in taken.stdout and "this store seals" in taken.stderr
    assert "is there already" in call("import", file).stdout
    bare = call("import", file, "--name", "bare", "--texts-only")
    assert "bare, version 1" in bare.stdout and "not taken in" in bare.stderr
    call("build", "secret", docs)
    call("export", "secret", file)
    monkeypatch.delenv("PREREAD_KEY")
    monkeypatch.setenv("PREREAD_HOME", str(tmp_path / "third"))
    assert "set PREREAD_KEY" in call("import", file).stderr
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(file.read_bytes()[:5000])
    refused = call("import", damaged)
    assert refused.exit_code == 2 and "not a whole export" in refused.message  # type: ignore
