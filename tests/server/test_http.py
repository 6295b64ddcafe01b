"""What a server says to requests that are wrong, too large, too many, or left alone."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import re
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

import preread
from preread.config import ServerSection
from preread.errors import ConfigError

from .conftest import Served, serving

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 4}
LONG = {**ASK, "max_tokens": 400, "ignore_eos": True}
CHAT = "/chat/completions"
KEY = "k" * 32


def place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


def running(engine: preread.Engine) -> int:
    """Rows in the engine."""
    core = engine.backend._thread._engine  # type: ignore[attr-defined]
    return int((core._seqs.state != 0).sum())


def until(engine: preread.Engine, rows: int) -> None:
    end = time.monotonic() + 60
    while running(engine) != rows:
        assert time.monotonic() < end
        time.sleep(0.001)


def error(told: Any) -> dict[str, Any]:
    value: dict[str, Any] = told["error"]
    assert set(value) == {"message", "type", "param", "code"} and value["message"]
    return value


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b"{"),
        (400, b"[" * 100_000),
        (400, b"[]"),
        (400, b'"\xff"'),
        (400, {**ASK, "seed": 2**70}),
        (400, {**ASK, "messages": [{"role": "user", "content": "\ud800"}]}),
        (400, {**ASK, "labels": []}),
        (400, {"model": "tiny", "messages": ASK["messages"], "labels": ["x" * 100_000, "y"]}),
        (
            400,
            {"model": "tiny", "messages": ASK["messages"], "labels": list(map(str, range(10**5)))},
        ),
        (400, {"model": "tiny", "messages": ASK["messages"], "continuation": [2**30]}),
        (400, {**ASK, "model": "\ud800"}),
        (400, {**ASK, "stop": ["\ud800"]}),
        (400, {**ASK, "stop": list(map(str, range(10**5)))}),
        (400, {**ASK, "unheard": 1}),
        (400, {**ASK, "temperature": float("nan")}),
        (400, {**ASK, "response_format": {"type": "json_schema", "json_schema": {}}}),
        (400, {**ASK, "response_format": schema({"type": "nonsense"})}),
        (400, {**ASK, "response_format": schema({"$ref": "#/nowhere"})}),
        (400, {**ASK, "stream_options": {"include_usage": True}}),
        (413, b" " * (9 << 20)),
    ],
)
def test_what_is_wrong_is_refused(served: Served, status: int, body: Any) -> None:
    got, told = served.post(CHAT, body)
    assert got == status and error(told)["type"] == "invalid_request_error"
    assert served.post(CHAT, ASK)[0] == 200


def test_every_field_is_read_or_refused(served: Served) -> None:
    """A field that nobody has heard of is named, whatever else is in the body."""
    scored = {"model": "tiny", "messages": ASK["messages"], "labels": ["a", "b"]}
    plain = {"model": "tiny", "prompt": "x", "max_tokens": 2}
    bodies = [(CHAT, ASK), (CHAT, scored), ("/completions", plain)]
    for path, body in bodies:
        assert served.post(path, body)[0] == 200
        status, told = served.post(path, {**body, "presence_penalty_typo": 1})
        assert status == 400 and error(told)["param"] == "presence_penalty_typo"


def test_tokens_are_told(served: Served, handbook: preread.Context) -> None:
    root = Served(served.engine, served.url.removesuffix("/v1"))
    text = served.engine.text
    assert text is not None
    turns = [{"role": "user", "content": "Who?"}]
    status, told = root.post("/tokenize", {"model": "tiny", "messages": turns})
    want = text.chat.whole(preread.Prefix(""), "Who?").tolist()
    assert status == 200 and told["tokens"] == want and told["count"] == len(want)
    status, told = root.post("/tokenize", {"model": "handbook", "messages": turns})
    prefix = handbook.opened.prefix(0)
    assert told["tokens"] == text.chat.whole(prefix, "Who?").tolist()
    for special, begins in ((True, list(text.tokenizer.bos_ids)), (False, [])):
        body = {"model": "tiny", "prompt": "<|im_end|>", "add_special_tokens": special}
        tokens = root.post("/tokenize", body)[1]["tokens"]
        assert tokens == begins + text.tokenizer.encode_text("<|im_end|>")
    for wrong in ({"prompt": 3}, {}, {"messages": turns, "add_generation_prompt": False},
                  {"prompt": "x", "no": 1}):  # fmt: skip
        status, told = root.post("/tokenize", {"model": "tiny", **wrong})
        assert status == 400 and error(told)["param"]


def test_paths_and_methods(served: Served) -> None:
    assert served.get("/nothing")[0] == 404
    status, told = served.get(CHAT)
    assert status == 405 and error(told)
    assert served.get("/models/none")[0] == 404
    connection = http.client.HTTPConnection(*place(served.url))
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok"}
    connection.close()


def test_pages_of_a_browser_do_not_ask(served: Served) -> None:
    assert served.post(CHAT, ASK, Content_Type="text/plain")[0] == 415
    status, told = served.post(CHAT, ASK, Host="evil.example")
    assert status == 403 and error(told)["code"] == "wrong_host"
    assert served.get("/models", Host="evil.example:8000")[0] == 403
    assert served.get("/models", Host="localhost:8000")[0] == 200


def test_a_key_is_needed_where_there_is_one(engine: preread.Engine) -> None:
    with serving(engine, ServerSection(port=0, name="tiny", key=KEY)) as served:
        for wrong in ("", "Bearer", f"Bearer {KEY[1:]}", f"Basic {KEY}", "Bearer \xff"):
            status, told = served.post(CHAT, ASK, Authorization=wrong)
            assert status == 401 and error(told)["code"] == "invalid_api_key"
            assert KEY not in json.dumps(told)
        assert served.get("/models")[0] == 401
        assert served.post(CHAT, ASK, Authorization=f"Bearer {KEY}")[0] == 200
        assert served.get("/models", Host="anything", Authorization=f"Bearer {KEY}")[0] == 200
        connection = http.client.HTTPConnection(*place(served.url))
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 401
        connection.close()
    assert KEY not in repr(ServerSection(key=KEY))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "somewhere.example"])
def test_a_public_address_needs_a_key(engine: preread.Engine, host: str) -> None:
    with pytest.raises(ConfigError, match="KEY"), serving(engine, ServerSection(host=host, port=0)):
        raise AssertionError("it listens")


def test_a_port_that_is_taken_is_told(served: Served) -> None:
    taken = ServerSection(port=place(served.url)[1])
    with pytest.raises(ConfigError, match="--port"), serving(served.engine, taken):
        raise AssertionError("it listens")


def test_fifty_at_once_are_answered_as_one_by_one(
    served: Served, handbook: preread.Context
) -> None:
    def ask(i: int) -> Any:
        model = "handbook" if i % 2 else "tiny"
        turn = {"role": "user", "content": f"Question {i % 25}: how much leave?"}
        body = {"model": model, "messages": [turn], "max_tokens": 6 + i % 3}
        status, told = served.post(CHAT, body)
        assert status == 200
        return told["choices"][0]["message"]["content"], told["usage"]["completion_tokens"]

    alone = [ask(i) for i in range(50)]
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, range(50))) == alone


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["tiny", "handbook"])
async def test_who_leaves_frees_the_row(
    served: Served, handbook: preread.Context, stream: bool, model: str
) -> None:
    body = {**LONG, "model": model, "stream": stream}

    async def ask(session: aiohttp.ClientSession) -> None:
        async with session.post(served.url + CHAT, json=body) as response:
            async for _ in response.content:
                pass

    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(ask(session))
        await asyncio.to_thread(until, served.engine, 1)
        task.cancel()
        await asyncio.to_thread(until, served.engine, 0)
    core = served.engine.backend._thread._engine  # type: ignore[attr-defined]
    assert core.pages.free == core.pages.total
    while "server.cancelled" not in served.engine.metrics:
        await asyncio.sleep(0.001)
    assert "server.answered" not in served.engine.metrics


def test_too_many_are_told_to_wait(engine: preread.Engine) -> None:
    with serving(engine, ServerSection(port=0, name="tiny", max_requests=1)) as served:
        connection = http.client.HTTPConnection(*place(served.url))
        sent = {"Content-Type": "application/json"}
        connection.request("POST", "/v1" + CHAT, json.dumps({**LONG, "stream": True}), sent)
        until(engine, 1)
        other = http.client.HTTPConnection(*place(served.url))
        other.request("POST", "/v1" + CHAT, json.dumps(ASK), sent)
        reply = other.getresponse()
        assert reply.status == 429 and reply.headers["Retry-After"] == "1"
        assert error(json.loads(reply.read()))["code"] == "rate_limit_exceeded"
        connection.close()
        other.close()
        until(engine, 0)


def test_a_small_body_that_is_a_large_one(served: Served) -> None:
    bomb = gzip.compress(b" " * (200 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, told = served.post(CHAT, bomb, Content_Encoding="gzip")
    assert status == 413 and error(told)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    packed = gzip.compress(json.dumps(ASK).encode())
    assert served.post(CHAT, packed, Content_Encoding="gzip")[0] == 200


def test_half_a_request_is_not_waited_for(engine: preread.Engine) -> None:
    with serving(engine, ServerSection(port=0, name="tiny", read_s=0.2)) as served:
        with socket.create_connection(place(served.url)) as slow:
            slow.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            slow.settimeout(60)
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_who_takes_nothing_of_a_whole_answer_is_cut_off(engine: preread.Engine) -> None:
    """Else what it was to be sent would lie in memory for ever."""
    body = json.dumps({"model": "tiny", "prompt": "word " * 400_000}).encode()
    with serving(engine, ServerSection(port=0, name="tiny", write_s=0.3)) as served:
        with socket.socket() as idle:
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            idle.settimeout(60)
            idle.connect(place(served.url))
            idle.sendall(
                b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            while "server.answered" not in engine.metrics:
                time.sleep(0.01)
            time.sleep(2)
            got = 0
            try:
                while data := idle.recv(1 << 20):
                    got += len(data)
            except ConnectionResetError:
                pass
            assert got < 8_000_000


def test_requests_under_way_end_before_the_server(engine: preread.Engine) -> None:
    done: list[Any] = []
    with serving(engine) as served:
        thread = threading.Thread(target=lambda: done.append(served.post(CHAT, LONG)))
        thread.start()
        until(engine, 1)
    thread.join()
    ((status, told),) = done
    assert status == 200 and told["usage"]["completion_tokens"] == 400
    with pytest.raises(OSError):
        socket.create_connection(place(served.url), timeout=1).close()


def test_an_end_that_cannot_wait_cancels(engine: preread.Engine) -> None:
    done: list[Any] = []
    endless = {**LONG, "max_tokens": 3000}

    def ask() -> None:
        try:
            done.append(served.post(CHAT, endless))
        except OSError as exc:
            done.append(exc)

    with serving(engine, ServerSection(port=0, name="tiny", drain_s=0.1)) as served:
        thread = threading.Thread(target=ask)
        thread.start()
        until(engine, 1)
    thread.join()
    assert len(done) == 1
    until(engine, 0)


def test_metrics_can_be_read(served: Served) -> None:
    served.post(CHAT, ASK)
    served.post(CHAT, {**ASK, "n": 3})
    connection = http.client.HTTPConnection(*place(served.url))
    connection.request("GET", "/metrics")
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    line = re.compile(r"(# TYPE [a-z_]+ (counter|gauge))|([a-z_]+ \S+)")
    assert all(line.fullmatch(text) for text in text.splitlines())
    values = dict(row.split() for row in text.splitlines() if not row.startswith("#"))
    assert float(values["preread_server_requests_total"]) == 2
    assert float(values["preread_server_answered_total"]) == 1
    assert float(values["preread_server_refused_total"]) == 1
    assert float(values["preread_server_output_tokens_total"]) == 4
    assert float(values["preread_server_under_way"]) == 0
    assert float(values["preread_engine_steps_total"]) > 0


def test_a_new_version_is_asked(served: Served, handbook: preread.Context, docs: Path) -> None:
    body = {**ASK, "model": "handbook"}
    assert served.post(CHAT, body)[1]["preread"]["context"]["version"] == 1
    (docs / "leave.md").write_text("# Leave\n\nStaff get 26 days.\n")
    served.engine.build("handbook", docs)
    end = time.monotonic() + 60
    while served.post(CHAT, body)[1]["preread"]["context"]["version"] != 2:
        assert time.monotonic() < end


def test_a_changed_source_is_seen(
    engine: preread.Engine, handbook: preread.Context, docs: Path
) -> None:
    with serving(engine, ServerSection(port=0, refresh_s=0.01)) as served:
        body = {**ASK, "model": "handbook"}
        assert served.post(CHAT, body)[1]["preread"]["context"]["version"] == 1
        (docs / "leave.md").write_text("# Leave\n\nStaff get 26 days.\n")
        end = time.monotonic() + 60
        while served.post(CHAT, body)[1]["preread"]["context"]["version"] != 2:
            assert time.monotonic() < end


def test_what_is_gone_is_not_answered(
    served: Served, handbook: preread.Context, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removed name is unknown, also where a file is called so."""
    body = {**ASK, "model": "handbook"}
    assert served.post(CHAT, body)[0] == 200
    served.engine.catalog.remove("handbook")
    (docs / "handbook").write_text("another text")
    monkeypatch.chdir(docs)
    end = time.monotonic() + 60
    while (told := served.post(CHAT, body))[0] == 200:
        assert time.monotonic() < end
    assert told[0] == 404 and error(told[1])["code"] == "model_not_found"
