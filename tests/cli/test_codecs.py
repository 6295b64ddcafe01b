from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from tests.cli.conftest import one_json

Call = Callable[..., Result]


def loaded(call: Call, name: str) -> bool:
    answer = one_json(call("ask", name, "How many days?", "--json", "--no-resident"))
    return answer["timing"]["load_ms"] > 0


def test_a_codec_belongs_to_a_context(call: Call, docs: Path, tmp_path: Path) -> None:
    """Asked for when it is built, remembered by whoever uses it afterwards."""
    (docs / "long.md").write_text("\n".join(f"Line {n} of a long page." for n in range(90)))
    assert call("build", "small", docs, "--codec", "int8").exit_code == 0
    call("build", "exact", docs)
    codecs = {n: one_json(call("show", n, "--json"))["codec"] for n in ("small", "exact")}
    assert codecs == {"small": "int8", "exact": "raw"}
    assert loaded(call, "small") and loaded(call, "exact")
    keys = [one_json(call("verify", name, "--json")) for name in ("small", "exact")]
    assert keys[0]["ok"] > 0 and keys[1]["nbytes"] > keys[0]["nbytes"] and not keys[0]["missing"]
    call("build", "small", docs, "--force")  # says nothing of a codec: it stays
    assert one_json(call("show", "small", "--json"))["codec"] == "int8"
    file = tmp_path / "small.tar"
    call("export", "small", file)
    call("import", file, "--name", "copy")
    assert one_json(call("show", "copy", "--json"))["codec"] == "int8" and loaded(call, "copy")
    call("build", "small", docs, "--codec", "raw")
    assert one_json(call("show", "small", "--json"))["codec"] == "raw" and loaded(call, "small")


def test_a_codec_that_there_is_not(call: Call, docs: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert call("build", "small", docs, "--codec", "zip").exit_code == 2
    assert "raw, fp8, int8" in capsys.readouterr().err


def test_verify_measures_a_codec(call: Call, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PREREAD_CONTEXT_MAX_TOKENS", "1")
    value = one_json(call("verify", "--codec", "fp8", "--json"))
    assert value["codec"] == "fp8" and 0 < value["logit_error"] and value["questions"] == 20
