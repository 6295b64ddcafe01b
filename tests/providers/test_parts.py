"""The small parts: keys, prices, headers, retries, the gate, labels, estimates."""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime

import pytest

from preread.errors import ConfigError
from preread.providers.bucket import Told
from preread.providers.estimate import Estimate
from preread.providers.gate import Gate
from preread.providers.headers import limits_told, retry_after_s, seconds
from preread.providers.http import Reply, dump
from preread.providers.keys import Organisation, find_keys
from preread.providers.labels import ambiguous, by_first_token
from preread.providers.prices import listed
from preread.providers.retry import Retry
from preread.providers.sender import Refused, reason
from preread.providers.warmth import Warmth
from preread.types import Message
from tests.providers.clock import TurnedClock

OPENAI = ("OPENAI_API_KEY",)


def test_one_key_or_several_or_none():
    assert find_keys(OPENAI, env={}) == []
    assert find_keys(OPENAI, env={"OPENAI_API_KEY": "a"}) == [Organisation("", ("a",))]
    several = {"OPENAI_API_KEY": "a", "OPENAI_API_KEYS": "b, c,b"}
    assert find_keys(OPENAI, env=several) == [Organisation("", ("b", "c"))]
    both = find_keys(("GEMINI_API_KEY", "GOOGLE_API_KEY"), env={"GOOGLE_API_KEY": "g"})
    assert both == [Organisation("", ("g",))]


def test_keys_by_organisation_from_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nred:k1\nblue:k2\n\nred:k3\nk4\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        find_keys(OPENAI, str(file))
    file.chmod(0o600)
    found = find_keys(OPENAI, str(file), env={"OPENAI_API_KEY": "unused"})
    assert found == [
        Organisation("red", ("k1", "k3")),
        Organisation("blue", ("k2",)),
        Organisation("", ("k4",)),
    ]
    assert "k1" not in repr(found)
    with pytest.raises(ConfigError, match="cannot be read"):
        find_keys(OPENAI, str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("provider", "model", "uncached", "cached"),
    [
        ("anthropic", "claude-haiku-4-5", 353, 47),
        ("openai", "gpt-5-mini", 89, 12),
        ("openai", "gpt-4o-mini", 53, 27),
        ("gemini", "gemini-2.5-flash", 107, 15),
        ("deepseek", "deepseek-chat", 98, 12),
    ],
)
def test_prices_give_the_known_bills(provider, model, uncached, cached):
    """170,000 rows of 2,000 shared and 50 own tokens, 5 out: the table of our research."""
    prices = listed(provider, model).prices
    whole, shared, own, out = 348_500_000, 340_000_000, 8_500_000, 850_000
    assert round(prices.of(whole, 0, out)) == uncached
    assert round(prices.of(own, shared, out)) == cached
    assert prices.as_of and prices.currency == "USD"


def test_prices_of_unknown_models_and_of_files(tmp_path):
    assert listed("openai", "nobody-knows").prices is None
    assert listed("nobody", "gpt-4o-mini").prices is None
    assert listed("openai", "gpt-4o-mini-2024-07-18").prices.computed == 0.15
    assert listed("anthropic", "claude-sonnet-4-6").min_prefix == 2048  # the longest name wins
    assert listed("anthropic", "claude-haiku-4-5", hour=True).prices.written == 2.0
    file = tmp_path / "prices.toml"
    file.write_text('as_of = "2027-01-01"\n[openai.mine]\ncomputed = 1\ncached = 0.5\noutput = 2\n')
    mine = listed("openai", "mine-2", str(file)).prices
    assert (mine.written, mine.as_of) == (1.0, "2027-01-01")
    assert listed("openai", "gpt-4o-mini", str(file)).prices.cached == 0.075
    file.write_text("[openai.mine]\ncomputed = -1\n")
    with pytest.raises(ConfigError, match="computed = -1"):
        listed("openai", "mine", str(file))
    file.write_text("[openai.mine\n")
    with pytest.raises(ConfigError, match=r"prices\.toml"):
        listed("openai", "mine", str(file))


NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def test_limits_in_headers():
    openai = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-limit-tokens": "200000",
        "x-ratelimit-remaining-tokens": "199000",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert limits_told(openai) == {
        "requests": Told(500, 499, 0.12),
        "tokens": Told(200_000, 199_000, 360.0),
    }
    anthropic = {
        "anthropic-ratelimit-input-tokens-limit": "50000",
        "anthropic-ratelimit-input-tokens-remaining": "49000",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-22T12:00:30Z",
    }
    assert limits_told(anthropic, NOW) == {"input_tokens": Told(50_000, 49_000, 30.0)}
    assert limits_told({}) == {}
    strange = {"x-ratelimit-limit-tokens": "many", "x-ratelimit-reset-tokens": "soon"}
    assert limits_told(strange) == {"tokens": Told(-1, -1, -1.0)}


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Sun, 22 Nov 2026 12:00:09 GMT"}, 9.0),
        ({"retry-after": "Sun, 22 Nov 2026 11:00:09 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
    ],
)
def test_how_long_to_wait(headers, wait):
    assert retry_after_s(headers, NOW) == wait


def test_durations():
    assert (seconds("6m0s"), seconds("1.5s"), seconds("17"), seconds("1h2m")) == (
        360,
        1.5,
        17,
        3720,
    )
    assert seconds("soon") is None and seconds("5s!") is None


def test_retries_are_drawn_from_a_growing_span():
    retry = Retry(base_s=1.0, most_s=8.0, random=random.Random(1))
    for attempt in range(1, 8):
        drawn = [retry.delay_s(attempt, None) for _ in range(300)]
        most = min(8.0, 2.0 ** (attempt - 1))
        assert 0 <= min(drawn) < 0.1 * most and 0.9 * most < max(drawn) <= most
    assert retry.delay_s(1, 5.0) >= 5.0


def test_what_may_be_tried_again():
    assert all(Retry.may(status, "") for status in (408, 429, 500, 502, 503, 504, 529))
    assert not any(Retry.may(status, "") for status in (400, 401, 403, 404, 413, 422))
    assert not Retry.may(429, "insufficient_quota")


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ({"error": {"message": "No.", "code": "bad"}}, "bad", "HTTP 400: No."),
        ({"error": {"message": "No.", "type": "kind"}}, "kind", "HTTP 400: No."),
        ({"error": "No."}, "", "HTTP 400: No."),
        (None, "", "HTTP 400: plain"),
    ],
)
def test_reasons_in_all_dialects(body, code, text):
    data = json.dumps(body).encode() if body else b"plain"
    assert reason(body, Reply(400, {}, data)) == (code, text)


def test_what_is_too_long_is_recognised():
    assert Refused(400, "context_length_exceeded", "x").too_long
    assert Refused(400, "", "HTTP 400: prompt is too long: 9 tokens > 8 maximum").too_long
    assert not Refused(429, "", "too long").too_long
    assert not Refused(400, "", "no such model").too_long


async def test_the_gate_grows_with_success_and_shrinks_once_a_round():
    gate = Gate(64, start=2)
    for _ in range(4):
        gate.went_well()
    assert gate.limit == 6
    async with gate:
        gate.was_too_much()
        gate.was_too_much()  # the same round
        assert gate.limit == pytest.approx(4.2)
    before = gate.limit
    gate.went_well()
    assert gate.limit == pytest.approx(before + 1 / before)  # no doubling any more


async def test_the_gate_lets_so_many_in_and_no_more():
    gate, inside, most = Gate(8, start=3), 0, 0

    async def one() -> None:
        nonlocal inside, most
        async with gate:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    tasks = [asyncio.create_task(one()) for _ in range(50)]
    await asyncio.sleep(0)
    for task in tasks[5:9]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (most, gate.running) == (3, 0)


async def test_who_is_cancelled_while_others_leave_is_cancelled():
    """Who waits is taken out of the line by who leaves, too."""
    gate = Gate(1)

    async def stay() -> None:
        async with gate:
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(stay()) for _ in range(5)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ends} == {asyncio.CancelledError} and gate.running == 0


def test_labels_by_their_first_token():
    tops = [("B", math.log(0.6)), (" A", math.log(0.2)), ("b", math.log(0.1)), ("", -0.1)]
    assert by_first_token(("A", "B"), tops) == pytest.approx([math.log(0.2), math.log(0.6)])
    long = by_first_token(("not stated", "yes"), [("not", -0.1), ("ye", -3.0), ("yes", -4.0)])
    assert long == pytest.approx([-0.1, math.log(math.exp(-3) + math.exp(-4))])
    assert "begin with the same token 'n'" in by_first_token(("no", "none"), [("n", -0.1)])
    assert "None of the labels" in by_first_token(("A",), [("x", -0.1)])
    assert ambiguous(("no", "none")) and not ambiguous(("yes", "no"))


def test_estimates_learn():
    estimate, text = Estimate(), (Message("user", "x" * 4000),)
    for _ in range(50):
        estimate.learn(text, 2004)
    assert abs(estimate.tokens(text) - 2004) <= 2
    estimate.learn((), 0)


async def test_a_group_is_warm_until_its_server_forgets():
    clock = TurnedClock()
    warmth = Warmth(2, 100.0, clock)
    async with warmth.turn("g") as done:
        assert done is not None
        warmth.used("g")
    assert not warmth.warm("g")
    warmth.used("g")
    assert warmth.warm("g")
    async with warmth.turn("g") as done:
        assert done is None
    clock.time += 95
    assert not warmth.warm("g")  # it might be gone when the request arrives
    warmth.used("g")
    assert not warmth.warm("g")  # from the beginning
    warmth.used("g")
    assert warmth.warm("g") and not warmth.warm("g", ahead_s=95)


async def test_nobody_waits_for_ever_for_a_group_that_fails():
    warmth = Warmth(1, 0.0, TurnedClock())
    for _ in range(3):
        async with warmth.turn("g") as done:
            done(False)
    async with warmth.turn("g") as done:
        assert done is None


def test_the_simulated_provider_stands_alone():
    command = [
        sys.executable,
        "-m",
        "preread.testing.provider",
        "--server",
        "vllm",
        "--limit",
        "99",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/v1/models") as reply:
            assert json.load(reply)["data"][0]["max_model_len"] == 99
        with urllib.request.urlopen(f"{url}/simulation") as reply:
            assert json.load(reply)["simulated"] is True
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def test_json_is_what_the_standard_library_writes():
    long = 'He said "é\n' * 100
    body = {"model": "m", "messages": [{"role": "user", "content": long}, {"a": [1, 2.5, None]}],
            "stop": ["\n"], "empty": [], "none": None, "deep": {"x": True, "y": {}}}  # fmt: skip
    assert dump(body) == json.dumps(body)
    assert dump({"prompt": [1, 2, 3]}) == '{"prompt": [1, 2, 3]}'


def test_a_client_that_is_not_installed_is_named(monkeypatch):
    from preread.providers.http import Http

    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigError, match=r"pip install 'preread\[providers\]'"):
        Http("http://x")
