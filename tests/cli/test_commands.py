"""Every command, its JSON and its errors, on a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from typer.testing import Result

from preread import __version__
from preread.config import local_model
from tests.cli.conftest import one_json

Call = Callable[..., Result]


def test_build_says_what_was_read_and_what_fits(call: Call, docs: Path) -> None:
    value = one_json(call("build", "handbook", docs, "--json"))
    assert {
        "name",
        "version",
        "tokens",
        "reused_tokens",
        "computed_tokens",
        "kv_bytes",
        "seconds",
    } <= (set(value))
    assert value["version"] == 1 and value["tokens"] == value["computed_tokens"] > 0
    assert set(value["fits"]) == {"limit", "effective", "room"}


def test_a_second_build_computes_nothing(call: Call, docs: Path) -> None:
    first = one_json(call("build", "handbook", docs, "--json"))
    again = one_json(call("build", "handbook", docs, "--json"))
    assert again["version"] == 1 and again["unchanged"]
    assert again["reused_tokens"] == first["tokens"] and again["computed_tokens"] == 0


def test_an_edit_is_computed_from_the_first_changed_token(call: Call, docs: Path) -> None:
    long = "\n".join(f"Line {i} says nothing new at all." for i in range(60))
    (docs / "leave.md").write_text(long)
    first = one_json(call("build", "handbook", docs, "--json"))
    (docs / "travel.md").write_text("# Travel\n\nPlanes before trains.\n")
    second = one_json(call("build", "handbook", docs, "--json"))
    assert second["version"] == 2 and second["changes"] == "1 of 2 files changed"
    assert 0.8 * first["tokens"] < second["reused_tokens"] < second["tokens"]
    assert second["reused_tokens"] + second["computed_tokens"] == second["tokens"]


def test_ask_answers_with_the_documented_object(call: Call, docs: Path) -> None:
    call("build", "handbook", docs)
    value = one_json(call("ask", "handbook", "How many days?", "--json"))
    assert {"answer", "finish_reason", "citations", "usage", "timing", "context"} <= set(value)
    assert set(value["usage"]) == {
        "context_tokens",
        "cached_tokens",
        "computed_tokens",
        "output_tokens",
    }
    assert {"load_ms", "ttft_ms", "total_ms"} <= set(value["timing"])
    assert value["context"]["name"] == "handbook" and value["context"]["version"] == 1
    assert value["usage"]["cached_tokens"] > value["usage"]["computed_tokens"] > 0
    for citation in value["citations"]:
        assert set(citation) == {"source", "start_line", "end_line", "quote", "match"}


def test_ask_a_path_builds_it(call: Call, docs: Path) -> None:
    value = one_json(call("ask", docs, "How many days?", "--json"))
    assert value["context"]["version"] == 1
    listed = one_json(call("list", "--json"))["contexts"]
    assert [c["name"] for c in listed] == [value["context"]["name"]]


def test_ask_streams_and_ends_with_the_bill(call: Call, docs: Path) -> None:
    call("build", "handbook", docs)
    result = call("ask", "handbook", "How many days?")
    assert result.exit_code == 0
    last = result.stderr.strip().splitlines()[-1]
    for word in ("TTFT", "cached +", "computed +", "out", "saved", "wall"):
        assert word in last


def test_a_schema_is_obeyed(call: Call, docs: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"ok": {"type": "boolean"}}, '
                      '"required": ["ok"], "additionalProperties": false}')  # fmt: skip
    call("build", "handbook", docs)
    value = one_json(
        call("ask", "handbook", "Is it?", "--schema", schema, "--max-tokens", "40", "--json")
    )
    import json

    assert isinstance(json.loads(value["answer"])["ok"], bool)


def test_a_session_sees_its_own_history(call: Call, docs: Path) -> None:
    call("build", "handbook", docs)
    first = one_json(call("ask", "handbook", "Who?", "--session", "s1", "--json"))
    second = one_json(call("ask", "handbook", "And when?", "--session", "s1", "--json"))
    alone = one_json(call("ask", "handbook", "And when?", "--json"))
    prompt = {k: sum(v["usage"][x] for x in ("cached_tokens", "computed_tokens"))
              for k, v in (("second", second), ("alone", alone))}  # fmt: skip
    assert prompt["second"] > prompt["alone"] + first["usage"]["output_tokens"]
    assert one_json(call("show", "handbook", "--json"))["sessions"] == ["s1"]


def test_show_and_list_tell_the_state(call: Call, docs: Path) -> None:
    call("build", "handbook", docs)
    assert one_json(call("show", "handbook", "--json"))["state"]["label"] == "fresh"
    (docs / "leave.md").write_text("Other.\n")
    assert one_json(call("list", "--json"))["contexts"][0]["label"] == "stale"
    assert one_json(call("invalidate", "handbook", "--reason", "moved", "--json"))
    assert one_json(call("show", "handbook", "--json"))["state"] == {
        "label": "invalidated",
        "reason": "moved",
    }
    answer = one_json(call("ask", "handbook", "Who?", "--json"))
    assert answer["context"]["version"] == 2


def test_verify_rm_and_gc(call: Call, docs: Path, home: Path) -> None:
    call("build", "handbook", docs)
    sound = one_json(call("verify", "handbook", "--json"))
    assert sound["checked"] == sound["ok"] > 0
    chunk = next(p for p in (home / "kv" / "chunks").rglob("*") if p.is_file())
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    assert call("verify", "--json").exit_code == 3
    assert one_json(call("ask", "handbook", "Who?", "--json"))["finish_reason"] != "error"
    assert one_json(call("rm", "handbook", "--json"))["versions_removed"] == 1
    freed = one_json(call("gc", "--grace", "0", "--json"))
    assert freed["removed"] > 0 and freed["kept"] == 0


def test_verify_deep(call: Call, docs: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the next load would: with the key, and by the tokens of the texts."""
    monkeypatch.setenv("PREREAD_KEY", "ab12" * 16)
    call("build", "handbook", docs)
    call("build", "other", docs / "leave.md")
    sound = one_json(call("verify", "--deep", "--json"))
    assert sound["checked"] == sound["ok"] == one_json(call("verify", "--json"))["ok"] > 1
    assert sound["left"] == []
    chunk = next((home / "kv" / "chunks").rglob("*.kv"))
    value = bytearray(chunk.read_bytes())
    value[300] ^= 1  # and whoever knows the format makes its checksum right again
    value[240:256] = xxhash.xxh3_128(bytes(value[:240] + value[256:])).digest()
    chunk.write_bytes(value)
    assert call("verify").exit_code == 0
    found = call("verify", "--deep", "--json")
    assert found.exit_code == 3
    assert json.loads(found.stdout)["faults"] == {"broken_seal": 1}
    call("invalidate", "other")
    assert one_json(call("verify", "other", "--deep", "--json"))["left"] == [
        {"name": "other", "why": "by hand"}
    ]
    monkeypatch.delenv("PREREAD_KEY")
    lost = call("verify", "handbook", "--deep")
    assert lost.exit_code == 3 and "0 of 0 chunks" in lost.stdout, "a plain store has none of it"
    assert call("verify", "--deep", "--codec", "fp8").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("ask", "nobody", "Who?"), 2, "preread build"),
        (("show", "nobody"), 2, "nobody"),
        (("build", "bad name!", "x.md"), 2, "Try:"),
        (("build", "n", "missing.md"), 2, "missing.md"),
        (("build", "n", "x.md", "--ttl", "soon"), 2, "7d"),
        (("build", "n", "x.md", "--model", "no/such/folder"), 2, "no/such/folder"),
        (("build", "n", "x.md", "--ttl", "999999999999w"), 2, "at most"),
        (("ask", "nobody"), 2, "Missing argument 'question'. See: preread ask --help"),
        (("ask", "nobody", "Who?", "--max-tokens", "-1"), 2, "--max-tokens"),
        (("doctor", "--prompts", "-1"), 2, "preread doctor --help"),
        (("frobnicate",), 2, "preread --help"),
        (("--frobnicate",), 2, "No such option: --frobnicate. See: preread --help"),
    ],
)
def test_wrong_calls_say_what_to_do(
    call: Call,
    arguments: tuple[str, ...],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = call(*arguments)
    assert result.exit_code == code
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_chat_keeps_forks_and_begins_again(
    call: Call, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("build", "handbook", docs)
    monkeypatch.setattr("preread.cli.asking.wall_seconds", lambda: 9999.0)  # of the process
    lines = ("Who?", "/fork b", "And when?", "/new c", "/fork d", "/bogus", "/history", "/quit")
    result = call("chat", "handbook", "--session", "a", stdin="\n".join(lines))
    assert result.exit_code == 0 and "9999" not in result.stderr
    assert result.stderr.count(" · wall ") == 2 and result.stderr.count("/fork NAME") == 2
    assert "Session 'c' of 'handbook' has no turns" in result.stderr
    assert one_json(call("show", "handbook", "--json"))["sessions"] == ["a", "b"]


@pytest.mark.parametrize("arguments", [("build", "n"), ("ask",), ("up",)])
def test_a_home_that_is_a_file_is_said_before_anything_is_read(
    call: Call,
    docs: Path,
    home: Path,
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    home.write_text("not a folder")
    rest = {"build": (docs,), "ask": (docs, "Who?"), "up": ()}[arguments[0]]
    assert call(*arguments, *rest).exit_code == 1
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert str(home) in said and "PREREAD_HOME" in said


def test_no_command_is_answered_with_the_help(call: Call) -> None:
    bare = call()
    assert bare.exit_code == 2 and "Commands:" in bare.stdout
    assert call("--help").stdout == bare.stdout
    assert call("--version").stdout == f"preread {__version__}\n"


def test_a_folder_called_reader_is_not_the_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reader").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    assert local_model("reader") == "reader"
    assert local_model("other") == str(tmp_path / "other")
    assert local_model("owner/model") == "owner/model"


def test_a_path_that_is_read_first_tells_progress(tiny: Path, docs: Path, home: Path) -> None:
    import preread
    from preread.cli.asking import AskRequest, answer_events

    request = AskRequest(target=str(docs), question="Who?", cwd=str(docs), max_tokens=4)
    with preread.open(str(tiny), home=home) as engine:
        first, again = (list(answer_events(engine, request)) for _ in range(2))
    kinds = [next(iter(event)) for event in first]
    assert "progress" in kinds and kinds.index("progress") < kinds.index("result")
    assert not any("progress" in event for event in again)


@pytest.mark.parametrize("scope", [(), ("--model-of", "handbook")])
def test_what_was_erased_is_read_again_and_kept_anew(
    call: Call, docs: Path, scope: tuple[str, ...]
) -> None:
    built = one_json(call("build", "handbook", docs, "--json"))
    asked = one_json(call("ask", "handbook", "How many days?", "--json"))
    erased = one_json(call("erase", *scope, "--json"))
    kind = "model:" if scope else "tenant:default"
    assert erased["scope"].startswith(kind) and erased["epoch"] == 1
    again = one_json(call("ask", "handbook", "How many days?", "--json"))
    assert again["answer"] == asked["answer"]
    assert one_json(call("show", "handbook", "--json"))["version"] == 2
    one_json(call("gc", "--grace", "0", "--json"))
    last = one_json(call("ask", "handbook", "How many days?", "--json"))
    assert last["usage"]["cached_tokens"] == built["tokens"]
    assert call("erase", "--model-of", "nobody").exit_code == 2


def test_a_tenant_that_erases_a_model_leaves_the_others_theirs(
    call: Call, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_STORE_LOAD", "always")

    def loaded(tenant: str) -> bool:
        monkeypatch.setenv("PREREAD_STORE_TENANT", tenant)
        built = one_json(call("build", "handbook", docs, "--force", "--json"))
        return built["reused_tokens"] == built["tokens"] > 0

    assert [loaded(one) for one in ("alice", "bob", "default")] == [False] * 3
    assert [loaded(one) for one in ("bob", "default", "alice")] == [True] * 3
    erased = one_json(call("erase", "--model-of", "handbook", "--json"))
    assert erased["scope"].endswith("@tenant:alice")
    assert [loaded(one) for one in ("bob", "default", "alice")] == [True, True, False]
    refused = call("erase", "--model-of", "handbook", "--all-tenants")
    assert refused.exit_code == 2 and "tenant:alice" in refused.message  # type: ignore[attr-defined]
    assert [loaded(one) for one in ("alice", "bob", "default")] == [True] * 3
    assert call("erase", "--model-of", "handbook", "--all-tenants").exit_code == 0
    assert [loaded(one) for one in ("alice", "bob", "default")] == [False] * 3
    assert call("erase", "--all-tenants").exit_code == 2
