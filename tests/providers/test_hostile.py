"""Servers that misbehave: what they send costs their own row at most, and no key."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from preread.backend import Choose, Generate, RequestBatch
from preread.config import ProvidersSection
from preread.contexts.rows import collect
from preread.errors import ConfigError, ProviderError
from preread.providers import http
from preread.providers.backend import RemoteBackend
from preread.providers.gemini import Gemini
from preread.providers.headers import limits_told, retry_after_s
from preread.providers.keys import Organisation, find_keys
from preread.providers.opening import connect
from preread.providers.usage import openai
from preread.types import Finish, Prefix

GOOD: dict[str, Any] = {
    "choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 1},
}
KEY = "hush-hush-0815"
Answer = Callable[[str], Any]  # question -> an object, bytes or a whole response
Server = Callable[..., Awaitable[tuple[list[web.BaseRequest], RemoteBackend]]]


@pytest.fixture
async def serving() -> AsyncIterator[Server]:
    """A server that answers every chat completion as it likes, and a backend on it."""
    async with AsyncExitStack() as stack:

        async def start(answer: Answer, models: Any = None, **config: Any) -> Any:
            asked: list[web.BaseRequest] = []

            async def handle(request: web.BaseRequest) -> web.StreamResponse:
                asked.append(request)
                if request.path.endswith("/models"):
                    told = {"data": [{"id": "m"}]} if models is None else models
                elif request.path.endswith("/chat/completions"):
                    told = answer((await request.json())["messages"][-1]["content"])
                else:
                    return web.Response(status=404)
                if isinstance(told, web.StreamResponse):
                    return told
                body = told if isinstance(told, bytes) else json.dumps(told).encode()
                return web.Response(body=body, content_type="application/json")

            runner = web.ServerRunner(web.Server(handle))
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            settings = replace(ProvidersSection(timeout_s=5.0, attempts=2), **config)
            backend = await connect(f"openai:{url}", "", settings, env={"OPENAI_API_KEY": KEY})
            stack.push_async_callback(backend.close)
            return asked, backend

        yield start


def one_bad(bad: Any) -> Answer:
    return lambda question: bad if question == "bad" else GOOD


def changed(**more: Any) -> dict[str, Any]:
    return GOOD | more


def saying(**choice: Any) -> dict[str, Any]:
    return changed(choices=[GOOD["choices"][0] | choice])


@pytest.mark.parametrize(
    "bad",
    [
        saying(message={"content": {"a": 1}}),
        saying(message={"content": 5}),
        saying(token_ids=[2**70]),
        saying(token_ids=["a"]),
        saying(finish_reason=["stop"]),
        changed(choices=[]),
        changed(usage=[1]),
        b"[" * 100_000,
    ],
)
async def test_an_answer_of_no_known_form_is_one_rows_failure(serving: Server, bad: Any) -> None:
    _, backend = await serving(one_bad(bad))
    rows = await collect(backend, RequestBatch(Generate(4), ["one", "bad", "two"]))
    assert [row.finish for row in rows] == [Finish.STOP, Finish.ERROR, Finish.STOP]
    assert rows[1].error


@pytest.mark.parametrize(
    "odd",
    [
        changed(error=None),
        changed(usage={"prompt_tokens": 10**30, "completion_tokens": -5}),
        b'{"choices": [{"message": {"content": "fine"}}], "usage": {"prompt_tokens": NaN,'
        b' "completion_tokens": Infinity, "prompt_tokens_details": {"cached_tokens": 1e99}}}',
        saying(message={"content": [{"type": "text", "text": t} for t in ("fi", "ne")]}),
        web.Response(text=json.dumps(GOOD), headers={"x-ratelimit-limit-tokens": "inf"}),
        web.Response(text=json.dumps(GOOD), headers={"x-ratelimit-limit-requests": "nan"}),
    ],
)  # fmt: skip
async def test_an_answer_that_can_be_read_is_not_thrown_away(serving: Server, odd: Any) -> None:
    """It was paid for."""
    _, backend = await serving(one_bad(odd))
    rows = await collect(backend, RequestBatch(Generate(4), ["bad"]))
    assert [(row.finish, row.text, row.error) for row in rows] == [(Finish.STOP, "fine", "")]
    assert rows[0].usage.computed_tokens >= 0 and rows[0].usage.output_tokens >= 0


@pytest.mark.parametrize("text", [b'"x\\ud83d"', b'"x\xed\xa0\xbd"', b'"x\xff"'])
async def test_half_a_character_is_no_text(serving: Server, text: bytes) -> None:
    """A server that cuts by UTF-16 units sends such; nothing can store it."""
    body = b'{"choices": [{"message": {"content": ' + text + b"}}]}"
    _, backend = await serving(one_bad(body))
    (row,) = await collect(backend, RequestBatch(Generate(4), ["bad"]))
    assert row.finish is Finish.STOP and row.text.encode() and row.text.startswith("x\ufffd")


async def test_pairs_of_surrogates_are_characters(serving: Server) -> None:
    body = json.dumps(saying(message={"content": "\U0001f600 \\ud83d"}, finish_reason="stop"))
    _, backend = await serving(one_bad(body.encode()))
    (row,) = await collect(backend, RequestBatch(Generate(4), ["bad"]))
    assert row.text == "\U0001f600 \\ud83d"


async def test_a_body_without_end_is_not_read_to_its_end(
    serving: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LARGEST", 1 << 16)
    asked, backend = await serving(one_bad(b'{"choices": "' + b"x" * (1 << 17) + b'"}'))
    (row,) = await collect(backend, RequestBatch(Generate(4), ["bad"]))
    assert row.finish is Finish.ERROR and "larger than" in row.error
    assert sum(request.path.endswith("/chat/completions") for request in asked) == 1


async def test_no_key_follows_a_redirect(serving: Server) -> None:
    asked, backend = await serving(
        one_bad(web.Response(status=307, headers={"Location": "http://127.0.0.1:9/v1"}))
    )
    (row,) = await collect(backend, RequestBatch(Generate(4), ["bad"]))
    assert row.finish is Finish.ERROR and "307" in row.error
    assert sum(request.path.endswith("/chat/completions") for request in asked) == 1


async def test_a_wrong_key_is_not_tried_again_and_its_variable_is_named(serving: Server) -> None:
    told = web.Response(status=401, text=json.dumps({"error": {"message": f"bad key {KEY}"}}))
    asked, backend = await serving(one_bad(told))
    (row,) = await collect(backend, RequestBatch(Generate(4), ["bad"]))
    assert "OPENAI_API_KEY" in row.error and KEY not in row.error
    assert sum(request.path.endswith("/chat/completions") for request in asked) == 1


@pytest.mark.parametrize("models", [{"data": 5}, {"data": [{"id": "m", "max_model_len": "x"}]}])
async def test_a_server_that_is_none_is_told_of_in_words(serving: Server, models: Any) -> None:
    with pytest.raises(ProviderError, match=r"127\.0\.0\.1"):
        await serving(one_bad(GOOD), models=models)


async def test_counting_that_fails_does_not_end_a_batch(serving: Server) -> None:
    _, backend = await serving(one_bad(GOOD))

    async def broken(*_: Any) -> None:
        raise ProviderError("a reset.", hint="x")

    backend.facts = replace(backend.facts, counts=True)
    backend._dialect.count = broken  # type: ignore[method-assign]
    rows = await collect(backend, RequestBatch(Generate(4), ["one"], (Prefix("Rules. " * 99),)))
    assert [row.text for row in rows] == ["fine"]


@pytest.mark.parametrize(
    "url",
    [
        "http://host/v1?key=hush",
        "http://host/v1#hush",
        "http://[::1",
        "http://host:99999",
        "http://hush@host",
    ],
)
async def test_urls_that_cannot_be_used_are_refused(url: str) -> None:
    with pytest.raises(ConfigError) as told:
        await connect(f"openai:{url}", env={})
    assert "hush" not in str(told.value)


async def test_openais_own_host_is_at_home_however_it_is_written() -> None:
    with pytest.raises(ConfigError, match="needs a key"):
        await connect("openai:https://api.openai.com", "gpt-5-mini", env={})


def test_a_single_key_may_hold_a_colon() -> None:
    assert find_keys(("K",), env={"K": " id:secret\n"}) == [Organisation("", ("id:secret",))]


def test_a_key_that_cannot_be_sent_is_refused_unseen() -> None:
    with pytest.raises(ConfigError) as told:
        find_keys(("K",), env={"K": "one\ntwo"})
    assert "one" not in str(told.value) and "K" in str(told.value)


@pytest.mark.parametrize("asked", ["1e9", "1000000000", "Fri, 01 Jan 2999 00:00:00 GMT"])
def test_nobody_makes_us_wait_for_ever(asked: str) -> None:
    assert retry_after_s({"retry-after": asked}) == 3600.0


@pytest.mark.parametrize("asked", ["-5", "nan", "inf", "Fri, 01 Jan 1999 00:00:00 GMT"])
def test_a_time_that_is_over_is_no_wait(asked: str) -> None:
    assert not retry_after_s({"retry-after": asked})


def test_headers_without_end_are_not_believed() -> None:
    assert limits_told({"x-ratelimit-limit-tokens": "inf"}) == {
        "tokens": limits_told({"x-ratelimit-limit-tokens": "none"})["tokens"]
    }


def test_counts_stay_countable() -> None:
    assert openai({"prompt_tokens": 10**30}).prompt == 1 << 28
    assert openai({"prompt_tokens": float("nan")}).prompt == 0


async def test_what_cannot_be_deleted_leaves_the_rest_to_be_deleted() -> None:
    """cachedContents are paid by the hour."""
    gone: list[str] = []

    class Teller:
        async def tell(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
            gone.append(path.rpartition("/")[2])
            if path.endswith("one"):
                raise ProviderError("a reset.", hint="x")
            return 200, {}

    api = Gemini("gemini-2.5-flash", explicit=True)
    from preread.providers.gemini import _Kept

    api._kept = {name: _Kept(name) for name in ("one", "two")}
    with pytest.raises(ProviderError):
        await api.close(Teller())  # type: ignore[arg-type]
    assert gone == ["one", "two"]


async def test_probabilities_that_are_none_choose_nothing(serving: Server) -> None:
    tops = [{"token": "A", "logprob": float("nan")}, {"token": "B", "logprob": -1.0}]
    content = {"content": [{"token": "A", "logprob": 0.0, "top_logprobs": tops}]}
    _, backend = await serving(one_bad(saying(logprobs=content)))
    (row,) = await collect(backend, RequestBatch(Choose(("A", "B")), ["bad"]))
    assert row.finish is Finish.ERROR
