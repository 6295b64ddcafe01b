"""Each dialect against the simulated provider, and against the requests its provider documents."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import pytest

from preread.backend import Choose, Generate, LogLikelihood, RequestBatch
from preread.contexts.rows import collect
from preread.errors import ConfigError, ContextTooLong, ModelNotFound, RequestError
from preread.providers.anthropic import Anthropic
from preread.providers.deepseek import DeepSeek
from preread.providers.dialect import Ask
from preread.providers.gemini import Gemini
from preread.providers.ollama import Ollama
from preread.providers.openai import OpenAI
from preread.providers.opening import connect
from preread.testing.provider import Profile, Provider
from preread.testing.simulation.faults import Odds
from preread.types import Finish, Message, Prefix, Sampling
from tests.providers.clock import TurnedClock

RUBRIC = Prefix("Judge the candidate.\n" + "\n".join(f"point {n}: value {n}" for n in range(400)))
TOLD = Prefix(RUBRIC.system, (Message("user", "Ready?"), Message("assistant", "Yes.")))
KINDS = ("openai", "anthropic", "gemini", "deepseek", "ollama")
SERVER = {"deepseek": {"server": "deepseek", "firsts": 2, "block": 64}}
SHAPE = {
    "type": "object",
    "properties": {"there": {"type": "boolean"}},
    "required": ["there"],
    "additionalProperties": False,
}


def batch(n: int, prefix: Prefix = RUBRIC, **work: object) -> RequestBatch:
    given = Generate(**{"max_tokens": 8, **work})  # type: ignore[arg-type]
    return RequestBatch(given, [f"Candidate {i}: point {i}?" for i in range(n)], (prefix,))


@pytest.fixture(params=KINDS)
async def pair(request, opened):
    kind = request.param
    server, backend = await opened(
        kind, model="simulated", latency_ms=5, limit=8192, **SERVER.get(kind, {})
    )
    return kind, server, backend


async def test_rows_are_answered_and_reuse_what_the_first_read(pair):
    kind, _, backend = pair
    rows = await collect(backend, batch(20))
    assert [row.text for row in rows] == [f"value {i}" for i in range(20)]
    misses = [row.usage.cached_tokens for row in rows].count(0)
    assert misses == (2 if kind == "deepseek" else 1)
    for row in rows:
        prompt = row.usage.cached_tokens + row.usage.computed_tokens
        assert 0 < row.usage.context_tokens <= prompt
        assert row.usage.output_tokens == 2
    assert backend.info.name == kind


async def test_what_the_server_saw_is_what_we_count(pair):
    _, server, backend = pair
    rows = await collect(backend, batch(12))
    told = {"cached": 0, "computed": 0, "output": 0}
    for row in rows:
        told["cached"] += row.usage.cached_tokens
        told["computed"] += row.usage.computed_tokens
        told["output"] += row.usage.output_tokens
    assert told == dict(server.tokens)


async def test_every_request_of_a_group_begins_with_the_same_bytes(pair):
    _, server, backend = pair
    await collect(backend, batch(5, TOLD))
    sent = [json.dumps(body).replace("simulated", "") for body in server.bodies]
    assert len(sent) == 5
    for a, b in pairwise(sent):
        same = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
        assert a[:same].count("value 399") == 1 and "Ready?" in a[:same]


async def test_a_conversation_keeps_its_order(pair):
    _, server, backend = pair
    await collect(backend, batch(1, TOLD))
    text = json.dumps(server.bodies[-1])
    places = [text.index(piece) for piece in ("Ready?", "Yes.", "Candidate 0")]
    assert places == sorted(places)


async def test_stop_length_and_sampling(pair):
    _, server, backend = pair
    sampling = Sampling(temperature=0.5, top_p=0.9)
    (row,) = await collect(backend, batch(1, stop=("0",), sampling=sampling))
    assert (row.text, row.finish) == ("value ", Finish.STOP)
    (row,) = await collect(backend, batch(1, max_tokens=1))
    assert (row.text, row.finish) == ("value", Finish.LENGTH)
    said = json.dumps(server.bodies[0])
    assert "0.5" in said and "0.9" in said


async def test_output_obeys_a_schema_or_is_refused(pair):
    kind, _, backend = pair
    if kind == "deepseek":
        with pytest.raises(RequestError, match="no schema"):
            await collect(backend, batch(1, schema=SHAPE))
        return
    (row,) = await collect(backend, batch(1, schema=SHAPE, max_tokens=64))
    assert json.loads(row.text) == {"there": True}


async def test_choosing_or_saying_why_not(pair):
    kind, _, backend = pair
    row_of = RequestBatch(Choose(("value", "none", "other")), ["point 3?"], (RUBRIC,))
    if kind == "anthropic":
        with pytest.raises(RequestError, match="no log-probabilities"):
            await collect(backend, row_of)
        return
    (row,) = await collect(backend, row_of)
    assert row.label_probs[0] > 0.9 and 0.9 < row.mass <= 1


async def test_what_nobody_can_score_is_refused(pair):
    _, _, backend = pair
    with pytest.raises(RequestError, match=r"score|log-probabilities"):
        await collect(backend, RequestBatch(LogLikelihood(["x"]), ["a"], (RUBRIC,)))


async def test_log_probabilities_when_asked_for(pair):
    kind, _, backend = pair
    if kind == "anthropic":
        with pytest.raises(RequestError, match="no log-probabilities"):
            await collect(backend, batch(1, logprobs=True))
        return
    (row,) = await collect(backend, batch(1, logprobs=True))
    assert len(row.logprobs) == len(row.tokens) == 2 and max(row.logprobs) < 0


async def test_faults_are_ridden_out(opened):
    for kind in KINDS:
        odds = Odds(busy=0.1, error=0.1, half=0.1, seed=5)
        _, backend = await opened(
            kind, model="simulated", odds=odds, limit=8192, config={"attempts": 20},
            **SERVER.get(kind, {})
        )  # fmt: skip
        rows = await collect(backend, batch(20))
        assert [row.text for row in rows] == [f"value {i}" for i in range(20)], kind


async def test_a_row_that_is_too_long_fails_alone(pair):
    _, _, backend = pair
    prompts = ["point 1?", "word " * 9000, "point 2?"]
    rows = await collect(backend, RequestBatch(Generate(max_tokens=8), prompts, (RUBRIC,)))
    assert [row.finish for row in rows] == [Finish.STOP, Finish.ERROR, Finish.STOP]
    with pytest.raises(ContextTooLong):
        await backend.build(Prefix("word " * 9000))


async def test_building_reads_as_often_as_it_takes(pair):
    kind, server, backend = pair
    first = await backend.build(RUBRIC)
    assert first.tokens == first.computed_tokens + first.reused_tokens and first.computed_tokens
    assert server.answered == (2 if kind == "deepseek" else 1)
    assert (await backend.build(RUBRIC)).computed_tokens == 0
    rows = await collect(backend, batch(5))
    assert all(row.usage.cached_tokens for row in rows)


# --- Anthropic


async def test_anthropic_marks_the_shared_block_and_never_the_last(opened):
    server, backend = await opened("anthropic", model="simulated")
    await collect(backend, batch(3))
    for body in server.bodies:
        assert body["system"][-1]["cache_control"] == {"type": "ephemeral"}
        assert "cache_control" not in json.dumps(body["messages"])
    server.bodies = []
    await collect(backend, batch(1, TOLD))
    turns = server.bodies[0]["messages"]
    assert [("cache_control" in json.dumps(t)) for t in turns] == [False, True, False]


async def test_anthropic_says_what_was_written_and_for_how_long(opened):
    server, backend = await opened("anthropic", model="simulated", config={"cache_ttl": "1h"})
    written = [
        news.written.tolist() if news.written is not None else [0] * len(news.rows)
        async for news in backend.submit(batch(4))
    ]
    assert sorted(n for part in written for n in part)[:3] == [0, 0, 0]
    assert max(n for part in written for n in part) >= 1500
    assert server.bodies[0]["system"][-1]["cache_control"]["ttl"] == "1h"


async def test_anthropic_cached_tokens_are_free_of_limits(opened):
    """50 rows of about 1,600 tokens, and room for two of them in a period."""
    limits = {"input_tpm": 4000, "period_s": 2.0}
    server, backend = await opened(
        "anthropic", model="simulated", input_tokens=4000, period_s=2.0, config=limits
    )
    rows = await collect(backend, batch(50))
    assert not any(row.error for row in rows) and server.over == 0
    (meter,) = server.rates.meters.values()
    assert meter.passed < 50 * 40


async def test_a_lease_longer_than_the_servers_memory_is_kept():
    """Time is turned: 20 minutes of a lease at a server that forgets after five."""
    clock = TurnedClock()
    async with Provider(Profile(min_prefix=64)) as server:
        spec = f"anthropic:{server.url}"
        backend = await connect(spec, "simulated", env={}, clock=clock)
        began = clock.now()
        await backend.build(RUBRIC, lease_s=1200)
        await asyncio.gather(*backend._kept.values())
        assert 4 <= server.answered <= 7 and clock.now() - began >= 1200
        assert server.tokens["cached"] >= 1500 * (
            server.answered - 1
        )  # it never had to write again
        rows = await collect(backend, batch(2))
        assert all(row.usage.cached_tokens for row in rows)
        await backend.close()


# --- Gemini


async def test_gemini_keeps_contents_by_name_and_deletes_them(opened):
    server, backend = await opened(
        "gemini", model="simulated", config={"explicit_cache": True}, latency_ms=5
    )
    rows = await collect(backend, batch(10))
    assert server.gemini.made == 1 and len(server.gemini.contents) == 1
    body = server.bodies[-1]
    assert "systemInstruction" not in body and body["cachedContent"].startswith("cachedContents/")
    assert all(row.usage.cached_tokens >= 1500 for row in rows)
    # What it took to make is on the first row's bill.
    assert max(row.usage.computed_tokens for row in rows) >= 1500
    await backend.close()
    assert server.gemini.contents == {}


async def test_gemini_without_a_long_enough_prefix_goes_on_implicitly(opened):
    server, backend = await opened(
        "gemini", model="simulated", config={"explicit_cache": True}, min_prefix=4096
    )
    rows = await collect(backend, batch(3))
    assert not any(row.error for row in rows) and server.gemini.made == 0


# --- Ollama


async def test_ollama_never_sends_a_conversation_and_never_reloads(opened):
    server, backend = await opened("ollama", model="simulated", limit=8192)
    await collect(backend, batch(8))
    await backend.build(Prefix("Other."))
    assert all("context" not in body for body in server.bodies)
    assert {body["options"]["num_ctx"] for body in server.bodies} == {8192}
    assert all(body["truncate"] is False for body in server.bodies)
    assert server.ollama.reloads == 1


async def test_ollama_context_is_said_and_checked(opened, caplog):
    _, backend = await opened("ollama", limit=32_768)  # the only model is found
    assert backend.info.limit == 8192 and "32,768" in caplog.text
    (row,) = await collect(backend, RequestBatch(Generate(max_tokens=4), ["word " * 9000]))
    assert row.finish is Finish.ERROR and "context length of 8192" in row.error
    with pytest.raises(ConfigError, match="num_ctx = 65,536"):
        await opened("ollama", limit=32_768, config={"num_ctx": 65_536})


def test_ollama_a_prompt_that_fills_the_context_may_have_been_cut():
    api = Ollama("m", num_ctx=4096)
    said = api.read(Ask(Generate()), {"prompt_eval_count": 4096, "message": {"content": "x"}})
    assert "may have been cut" in said.error


async def test_ollama_without_the_model_names_those_it_has(opened):
    with pytest.raises(ModelNotFound, match=r"these models: simulated.*ollama pull other"):
        await opened("ollama", model="other")


# --- OpenAI's own server, whose requests cannot be tried here


def shared(work: Generate, messages: tuple[Message, ...]) -> Ask:
    return Ask(work, messages, len(messages) - 1, "d1")


def test_openai_routes_by_the_shared_part_and_marks_its_end_where_writing_costs():
    messages = (Message("system", "Rubric."), Message("user", "Row."))
    old = OpenAI("gpt-5-mini")
    call = old.call(shared(Generate(), messages), {})
    assert call.path == "https://api.openai.com/v1/chat/completions"
    assert call.body["prompt_cache_key"] == "d1" and "prompt_cache_options" not in call.body
    new = OpenAI("gpt-6-luna").call(shared(Generate(), messages), {}).body
    assert new["prompt_cache_options"] == {"mode": "explicit", "ttl": "30m"}
    mark = new["messages"][0]["content"][0]
    assert mark["prompt_cache_breakpoint"] == {"mode": "explicit"}
    assert new["messages"][1]["content"] == "Row."


def test_models_without_a_temperature_are_given_none():
    assert "temperature" not in OpenAI("gpt-5-mini").options(Generate())
    assert OpenAI("gpt-4o-mini").options(Generate())["temperature"] == 0.0
    hot = Generate(sampling=Sampling(temperature=0.7))
    assert OpenAI("o3").options(hot)["temperature"] == 0.7  # refused there, and not by silence
    call = Anthropic("claude-opus-4-7").call(Ask(Generate(), (Message("user", "x"),)))
    assert "temperature" not in call.body


def test_openai_takes_its_own_name_for_the_limit():
    assert OpenAI("gpt-4o-mini").options(Generate(max_tokens=9))["max_completion_tokens"] == 9
    assert OpenAI("m", "http://host").options(Generate(max_tokens=9))["max_tokens"] == 9


def test_base_urls():
    assert OpenAI("m", "http://host:8000").base == "http://host:8000/v1"
    assert OpenAI("m", "https://api.groq.com/openai/v1").base == "https://api.groq.com/openai/v1"
    assert OpenAI("m", "http://host:8000/v1").root == "http://host:8000"
    assert DeepSeek("m").base == "https://api.deepseek.com/v1"


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "refusal"])
def test_an_answer_that_was_withheld_is_an_error(reason):
    choice = {"choices": [{"message": {"content": "x"}, "finish_reason": reason}]}
    ask = Ask(Generate(), (Message("user", "x"),))
    assert reason in OpenAI("m").read(ask, choice).error
    one = {"candidates": [{"content": {}, "finishReason": reason}]}
    assert reason in Gemini("m").read(ask, one).error
    blocked = Gemini("m").read(ask, {"promptFeedback": {"blockReason": "OTHER"}})
    assert "blocked: OTHER" in blocked.error
