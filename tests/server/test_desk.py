"""Desks and what is behind them, without a model: contexts that are split, end or change while they
are asked, and answers that break off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from preread.backend import Backend, RequestBatch, ResultBatch
from preread.batch.bodies import Defaults
from preread.config import Config, ServerSection
from preread.contexts.build import BuildRequest, build_context
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.layout import DEFAULT_INSTRUCTIONS
from preread.errors import EngineError, OutOfMemory
from preread.front import Front
from preread.metrics import Metrics
from preread.server.asked import read_chat
from preread.server.desk import Desk
from preread.server.keys import Keys
from preread.server.refusal import Refusal
from preread.server.server import Server
from preread.server.shelf import Shelf
from preread.testing.backend import FakeBackend
from preread.testing.replies import Reply

PATH = "/chat/completions"


class Breaks(Front):
    """Says one piece, then fails."""

    def __init__(self, backend: Backend, why: Exception) -> None:
        super().__init__(backend)
        self._why = why

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:  # type: ignore[override]
        async for news in self._backend.submit(batch):
            yield replace(news, finish=[None] * len(news.rows))
            raise self._why


class Floods(Front):
    """Says more at once than any socket holds."""

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:  # type: ignore[override]
        async for news in self._backend.submit(batch):
            yield replace(news, texts=["x" * (64 << 20) for _ in news.texts])


def body(model: str = "handbook", **fields: Any) -> dict[str, Any]:
    turn = {"role": "user", "content": "What says page 3 about colours?"}
    return {"model": model, "messages": [turn], "max_tokens": 20, **fields}


def write(folder: Path, pages: int) -> Path:
    folder.mkdir(exist_ok=True)
    for n in range(pages):
        text = f"page {n} says that the colours are red and blue {n}\n"
        (folder / f"page{n}.md").write_text(text * 30)
    return folder


def catalog(home: Path) -> SqliteCatalog:
    home.mkdir(exist_ok=True)
    return SqliteCatalog(home / "catalog.sqlite")


def desk(backend: Backend, home: Path, **knobs: Any) -> Desk:
    config = Config(home=home, server=ServerSection(port=0, **knobs))
    config = replace(config, model=replace(config.model, model=backend.info.model))
    shelf = Shelf(backend, catalog(home), config, lambda opened: opened)
    return Desk(backend, shelf, config, name="fake", words=None, metrics=Metrics())


async def build(backend: Backend, home: Path, docs: Path) -> int:
    request = BuildRequest("handbook", (str(docs),), DEFAULT_INSTRUCTIONS)
    outcome = await build_context(backend, catalog(home), request, Config(home=home))
    return len(outcome.record.shards)


@asynccontextmanager
async def served(made: Desk, home: Path, **knobs: Any) -> AsyncIterator[str]:
    config = Config(home, server=ServerSection(port=0, **knobs))
    server = Server(Keys({}, "default"), {"default": made}, config)
    yield await server.start()
    await server.stop()


async def post(url: str, sent: dict[str, Any]) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session:
        async with session.post(url + PATH, json=sent) as response:
            return response.status, await response.text()


def events(text: str) -> list[Any]:
    *data, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert last == "[DONE]"
    return [json.loads(value) for value in data]


async def test_a_split_context_answers_in_one_piece(home: Path, tmp_path: Path) -> None:
    backend = FakeBackend(limit=2048)
    assert await build(backend, home, write(tmp_path / "docs", 20)) > 1
    made = desk(backend, home)
    (whole,) = await made.answer(read_chat(body(), Defaults()))
    async with served(made, home) as url:
        status, text = await post(url, body(stream=True))
    assert status == 200
    pieces = events(text)
    said = "".join(p["choices"][0]["delta"].get("content") or "" for p in pieces)
    assert said == whole.text and pieces[-1]["preread"]["unread"]  # type: ignore[union-attr]
    (choice,) = await made.answer(
        read_chat({**body(), "labels": ["red", "no"]} | {"max_tokens": None}, Defaults())
    )
    assert choice.unread  # type: ignore[union-attr]


async def test_an_invalidated_context_is_rebuilt_for_who_asks(home: Path, tmp_path: Path) -> None:
    backend = FakeBackend()
    await build(backend, home, write(tmp_path / "docs", 2))
    made = desk(backend, home)
    for version in (1, 2, 3):
        (answer,) = await made.answer(read_chat(body(), Defaults()))
        assert answer.context is not None and answer.context.version == version  # type: ignore[union-attr]
        catalog(home).invalidate("handbook", "wrong")
    versions = []
    async for news in made.stream(read_chat(body(stream=True), Defaults())):
        if not isinstance(news, str):
            assert news.context is not None
            versions.append(news.context.version)
    assert versions == [4]


async def test_one_that_cannot_be_rebuilt_does_not_answer(home: Path, tmp_path: Path) -> None:
    """Its sources are gone: neither an old answer nor their place on this machine is told."""
    backend, docs = FakeBackend(), write(tmp_path / "docs", 2)
    await build(backend, home, docs)
    made = desk(backend, home)
    async with served(made, home) as url:
        assert (await post(url, body()))[0] == 200
        for page in docs.iterdir():
            page.unlink()
        catalog(home).invalidate("handbook", "wrong")
        status, text = await post(url, body())
    assert status == 500 and str(tmp_path) not in text


@pytest.mark.parametrize("why", [EngineError("It broke at /secret."), ValueError("/secret")])
async def test_a_stream_that_breaks_says_so(home: Path, why: Exception) -> None:
    made = desk(Breaks(FakeBackend(answer=lambda *_: "one two"), why), home)
    async with served(made, home) as url:
        status, text = await post(url, body("fake", stream=True))
        assert status == 200
        first, *_, last = events(text)
        assert first["choices"][0]["delta"]["content"]
        assert last["error"]["type"] == "server_error" and "/secret" not in text
        status, text = await post(url, body("fake"))
        assert status == 500 and "/secret" not in text
    counted = made.metrics.snapshot()
    assert counted["server.broken_streams"] == 1 and counted["server.failed"] >= 1


async def test_a_row_that_failed_at_another_server_is_its_failure(home: Path) -> None:
    made = desk(FakeBackend(answer=lambda *_: Reply("", error="HTTP 401: at /secret")), home)
    async with served(made, home) as url:
        status, text = await post(url, body("fake"))
    assert status == 502 and "/secret" not in text


async def test_what_does_not_fit_may_be_asked_again(home: Path) -> None:
    made = desk(Breaks(FakeBackend(), OutOfMemory("at 3 GiB")), home)
    async with served(made, home) as url:
        status, text = await post(url, body("fake"))
    assert status == 503 and "3 GiB" not in text


async def test_who_takes_nothing_is_not_waited_for(home: Path) -> None:
    made = desk(Floods(FakeBackend()), home)
    async with served(made, home, write_s=0.2) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        data = json.dumps(body("fake", stream=True)).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        while "server.cancelled" not in made.metrics.snapshot():
            await asyncio.sleep(0.01)
        assert made.gate.inside == 0
        writer.close()
        del reader


async def test_a_context_is_opened_once(home: Path, tmp_path: Path) -> None:
    backend = FakeBackend()
    await build(backend, home, write(tmp_path / "docs", 2))
    made = desk(backend, home)
    opened: list[str] = []
    made.shelf._keep = lambda one: (opened.append(one.record.name), one)[1]
    await asyncio.gather(*(made.answer(read_chat(body(), Defaults())) for _ in range(50)))
    assert opened == ["handbook"]


async def test_tokens_of_another_server_are_not_made_up(home: Path) -> None:
    made = desk(FakeBackend(), home)
    for field in ({"logprobs": True},):
        with pytest.raises(Refusal) as refused:
            await made.answer(read_chat(body("fake", **field), Defaults()))
        assert refused.value.status == 400 and refused.value.field == "logprobs"


async def test_a_name_is_not_a_path(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, docs = FakeBackend(), write(tmp_path / "docs", 1)
    monkeypatch.chdir(tmp_path)
    made = desk(backend, home)
    for name in ("docs", str(docs), "./docs", "-", "docs/*.md", "docs+docs", "~", "file:docs"):
        async with served(made, home) as url:
            status, text = await post(url, body(name))
        assert status == 404 and "colours" not in text
    assert not catalog(home).summaries()


async def test_another_models_context_is_left_alone(home: Path, tmp_path: Path) -> None:
    """Else one request would have it read again, and the other model the next time."""
    await build(FakeBackend(fingerprint="aa" * 32), home, write(tmp_path / "docs", 1))
    made = desk(FakeBackend(), home)
    made.shelf._config = replace(
        made.shelf._config, model=replace(made.shelf._config.model, model="another")
    )
    async with served(made, home) as url:
        assert (await post(url, body()))[0] == 404
    assert not await made.shelf.listed()
