"""An event elsewhere: the KV leaves this engine's memory, subscribers are told, and what must not
answer does not, over every kind of shared catalog."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from uuid import uuid4

import pytest

import preread
from preread.contexts.watch import Change
from preread.errors import HomeError, StateError
from tests.servers import s3_server
from tests.store.valkey import Valkey, running


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server("bucket") as endpoint:
        yield endpoint


@pytest.fixture(params=["sqlite", "redis", "s3"])
def place(
    request: pytest.FixtureRequest, valkey: Valkey, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Where the catalog is, set for every engine and process of the test."""
    valkey.command("FLUSHALL")
    places = {
        "sqlite": "",
        "redis": f"{valkey.url}?deadline=20s",
        "s3": f"s3://id:secret@bucket/{uuid4().hex}?endpoint={endpoint}&deadline=20s",
    }
    monkeypatch.setenv("PREREAD_STORE_CATALOG", places[request.param])
    return str(request.param)


@pytest.fixture
def engine(folder: Path, place: str) -> Iterator[preread.Engine]:
    with preread.open(str(folder), dtype="float32") as made:
        yield made


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("warranty: 24 months\ncolour: blue\n" * 20)
    return folder


@pytest.fixture
def told(engine: preread.Engine) -> Queue[Change]:
    changes: Queue[Change] = Queue()
    engine.subscribe(changes.put)
    return changes


def command(*arguments: str) -> None:
    """In a process of its own, as another machine would."""
    subprocess.run([sys.executable, "-m", "preread", *arguments], check=True, capture_output=True)


def resident(engine: preread.Engine, opened: preread.Context) -> bool:
    (shard,) = opened.opened.record.shards
    core = engine.backend._thread._engine  # type: ignore[attr-defined]
    tokens = engine.backend._model.chat.prefix(preread.Prefix(shard.system))  # type: ignore[attr-defined]
    return bool(core.resident(tokens))


def test_an_invalidation_elsewhere_drops_the_kv_and_is_told(
    engine: preread.Engine, docs: Path, told: Queue[Change]
) -> None:
    handbook = engine.context("handbook", docs)
    other = engine.context("other", docs, system="Answer in one word.")
    want = handbook.ask("Which colour?", max_tokens=4).text
    assert resident(engine, handbook) and resident(engine, other)
    command("invalidate", "handbook", "--reason", "recall")
    assert told.get(timeout=60) == Change("invalidated", "handbook", 1, "recall")
    assert not resident(engine, handbook)
    assert resident(engine, other)  # begins otherwise
    with pytest.raises(StateError, match="recall"):
        handbook.ask("Which colour?")
    again = engine.open("handbook")
    assert again.version == 2 and again.ask("Which colour?", max_tokens=4).text == want


def test_removal_and_a_newer_version_are_told(
    engine: preread.Engine, docs: Path, told: Queue[Change], folder: Path
) -> None:
    handbook = engine.context("handbook", docs)
    (docs / "b.md").write_text("size: large\n")
    command("build", "handbook", str(docs), "--model", str(folder))
    assert told.get(timeout=60) == Change("published", "handbook", 2)
    assert handbook.ask("Which colour?", max_tokens=2).text  # goes on with its own
    command("rm", "handbook")
    assert told.get(timeout=60) == Change("removed", "handbook", 1)
    assert not resident(engine, handbook)


def test_an_erased_tenant_is_read_again(
    engine: preread.Engine, docs: Path, told: Queue[Change]
) -> None:
    handbook = engine.context("handbook", docs)
    answer = handbook.ask("Which colour?", max_tokens=4)
    assert answer.usage.cached_tokens > 0
    engine.catalog.bump("tenant:default")
    assert told.get(timeout=60) == Change("erased", "tenant:default", 1)
    assert not resident(engine, handbook)
    again = handbook.ask("Which colour?", max_tokens=4)
    assert again.text == answer.text and again.usage.cached_tokens < answer.usage.cached_tokens
    engine.catalog.bump(f"model:{engine.info.fingerprint}")
    assert told.get(timeout=60).kind == "erased"


def test_who_left_is_not_told(engine: preread.Engine, docs: Path, told: Queue[Change]) -> None:
    late: list[Change] = []
    leave = engine.subscribe(late.append)
    leave()
    leave()
    engine.context("handbook", docs)
    engine.catalog.invalidate("handbook", "recall")
    assert told.get(timeout=60).kind == "invalidated"
    assert late == []


@pytest.mark.parametrize("use", ["ask", "stream", "choose", "session", "aio"])
def test_a_process_that_was_away_looks_before_its_next_use(
    folder: Path, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """The server is frozen, so that this process is away while another machine's copy of the same
    server is told: here, the truth is written before it thaws."""
    uses: dict[str, Callable[[preread.Engine, preread.Context], object]] = {
        "ask": lambda _, context: context.ask("Which colour?", max_tokens=2),
        "stream": lambda _, context: list(context.stream("Which colour?", max_tokens=2)),
        "choose": lambda _, context: context.choose("Is it blue?", ["yes", "no"]),
        "session": lambda _, context: context.session("s").ask("Which colour?", max_tokens=2),
        "aio": lambda engine, _: engine.run(engine.aio.ask("handbook", "Which?", max_tokens=2)),
    }
    with running(tmp_path / "valkey") as server:
        monkeypatch.setenv("PREREAD_STORE_CATALOG", f"{server.url}?deadline=0.2s")
        with preread.open(str(folder), dtype="float32") as engine:
            context = engine.context("handbook", docs)
            server.freeze()
            with pytest.raises(HomeError, match="no answer"):
                uses["ask"](engine, context)  # what may have been invalidated does not answer
            server.thaw()
            server.command("HSET", "{preread}:context:handbook", "invalidated:1", "recall")
            if use == "aio":
                answer = uses[use](engine, context)
                assert answer.context.version == 2  # type: ignore[attr-defined]
                return
            with pytest.raises(StateError, match="recall"):
                uses[use](engine, context)


def test_warming_what_was_invalidated_while_nobody_looked(folder: Path, docs: Path) -> None:
    """What is found is told from the thread that looks: not the loop's, which is wanted for it."""
    said: list[Exception] = []
    engine = preread.open(str(folder), dtype="float32")
    engine.build("docs", docs)
    context = engine.open("docs")
    watcher = engine._events._watcher
    watcher.close()  # it looks no more by itself
    watcher._looked = None
    engine.catalog.invalidate("docs", "recall")

    def warm() -> None:
        try:
            context.warm()
        except StateError as exc:
            said.append(exc)

    thread = threading.Thread(target=warm, daemon=True)
    thread.start()
    thread.join(60)
    assert "recall" in str(said[0])
    engine.close()
