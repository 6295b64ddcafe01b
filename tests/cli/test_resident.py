"""The resident process, served by a thread of the test: what it answers, what it declines, and that
it keeps nothing of clients that have gone."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

import preread
from preread.cli.asking import render
from preread.cli.client import address, resident_events, status
from preread.cli.resident import Resident
from preread.errors import PrereadError
from tests.cli.conftest import one_json

Call = Callable[..., Result]


@pytest.fixture
def resident(call: Call, home: Path) -> Iterator[Resident]:
    home.mkdir()
    with preread.open() as engine, Resident(engine, idle_s=600.0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def only_resident(resident: Resident, monkeypatch: pytest.MonkeyPatch) -> Resident:
    """Asking in this process fails: whatever is answered, the resident process answered."""

    def refuse(*_: object) -> None:
        raise AssertionError("not answered by the resident process")

    monkeypatch.setattr("preread.cli.asking.local_events", refuse)
    return resident


def test_a_place_is_where_the_client_is(
    call: Call, only_resident: Resident, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def context(target: str) -> object:
        return one_json(call("ask", target, "Who?", "--json"))["context"]

    monkeypatch.chdir(docs)
    asked = {"*.md": context("*.md"), "": context("."), "leave.md": context("leave.md")}
    assert len({str(value) for value in asked.values()}) == 3
    monkeypatch.chdir(tmp_path)
    for place, expected in asked.items():
        assert context(f"docs/{place}") == expected == context(f"{docs}/{place}")


def test_a_name_goes_before_a_folder_of_that_name(
    call: Call, only_resident: Resident, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("build", "docs", docs / "leave.md")
    monkeypatch.chdir(docs.parent)
    assert one_json(call("ask", "docs", "Who?", "--json"))["context"]["name"] == "docs"


def test_warm_loads_a_context_before_anybody_asks(
    call: Call, only_resident: Resident, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("build", "handbook", str(docs))
    first = one_json(call("warm", "handbook", "--lease", "30m", "--json"))
    assert first["stays"] and first["loaded_tokens"] == first["tokens"] > 0
    again = one_json(call("warm", "handbook", "--json"))
    assert (again["reused_tokens"], again["loaded_tokens"]) == (first["tokens"], 0)
    answer = one_json(call("ask", "handbook", "Who?", "--json"))
    assert answer["timing"]["load_ms"] == 0 and answer["brought"] is None
    said = call("warm", str(docs / "leave.md"))
    assert "0 loaded, 0 computed" in said.stdout and "no resident" not in said.stderr
    gone = call("warm", "handbok")
    assert gone.exit_code == 2 and "close: handbook" in str(gone.exception)


def test_warm_without_a_resident_process_says_so(call: Call, docs: Path) -> None:
    call("build", "handbook", str(docs))
    told = call("warm", "handbook")
    assert "loaded, 0 computed" in told.stdout and "preread up" in told.stderr


def test_standard_input_is_the_clients(call: Call, resident: Resident) -> None:
    value = one_json(call("ask", "-", "Who?", "--json", stdin="Ann keeps the keys.\n"))
    assert value["context"]["name"].startswith("stdin-")
    assert call("ask", "-", "-", stdin="Ann keeps the keys.\n").exit_code == 2


@pytest.mark.parametrize("variable", ["PREREAD_CONTEXT_MAX_TOKENS", "PREREAD_STORE_TENANT"])
def test_other_settings_are_declined(
    call: Call,
    resident: Resident,
    docs: Path,
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, "2")
    assert resident_events({"target": str(docs), "question": "Who?", "cwd": "/"}) is None
    assert "preread down" in capsys.readouterr().err


def test_another_model_is_declined(resident: Resident, docs: Path) -> None:
    request = {"target": str(docs), "question": "Who?", "cwd": "/", "model": "owner/other"}
    assert resident_events(request) is None


def test_an_error_has_its_own_type_and_code(call: Call, only_resident: Resident) -> None:
    result = call("ask", "nobody", "Who?")
    assert result.exit_code == 2 and "preread build" in str(result.exception)


def test_a_client_that_leaves_ends_its_answer(resident: Resident, docs: Path) -> None:
    request = {"target": str(docs), "question": "Who?", "cwd": "/", "max_tokens": 400}
    events = resident_events(request)
    assert events is not None
    next(events)
    events.close()
    while resident.running:
        threading.Event().wait(0.01)
    answered = resident.engine.metrics
    assert sum(v for k, v in answered.items() if "output" in k) < 400, answered


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"{", b"[]\n", b"{}\n", b'{"op": "ask"}\n', b"\xff\n"]
)
def test_nonsense_does_not_end_it(resident: Resident, home: Path, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address(home))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        reply = connection.makefile("rb").read()
    assert not line or "error" in json.loads(reply)
    assert status(home, 1.0) is not None


@pytest.mark.parametrize("said", [b"", b'{"delta": "half', b'{"delta": "half"}\n{"res'])
def test_a_process_that_is_killed_while_answering(home: Path, said: bytes) -> None:
    home.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address(home))
        listener.listen()

        def die() -> None:
            connection, _ = listener.accept()
            with connection:  # with the request unread, the client's next read is reset
                connection.sendall(said)

        thread = threading.Thread(target=die)
        thread.start()
        events = resident_events({"target": "x", "question": "Who?", "cwd": "/"})
        thread.join()
    if b"\n" not in said:
        assert events is None  # nothing was shown yet: this process answers
    else:
        with pytest.raises(PrereadError, match="in the middle"):
            render(iter(events or ()), json=True)


def test_no_secret_is_told_to_whoever_listens(tmp_path: Path) -> None:
    """Equal settings are seen without telling them: keys, and passwords in URLs."""
    from preread.cli.client import settings_of
    from preread.config import load_config

    def told(**env: str) -> str:
        return json.dumps(settings_of(load_config(tmp_path, env)))

    env = {"PREREAD_KEY": "ab12" * 16, "PREREAD_TIERS": "redis://me:hush@host"}
    assert "ab12ab12" not in told(**env) and "hush" not in told(**env)
    assert told(**env) == told(**env) != told(**{**env, "PREREAD_KEY": "ab13" * 16})
    assert told(**env) != told(PREREAD_KEY=env["PREREAD_KEY"])
