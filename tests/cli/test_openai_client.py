"""The `openai` package as oracle: its types make the lines that we read and read the lines that we
write, and its client, unchanged, talks to the simulated provider of our adapters' tests."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.completion_create_params import (
    CompletionCreateParamsNonStreaming as PlainParams,
)

from preread.testing.provider import Profile, Provider

from .test_batch import RULES, Call, served


def line(name: str, url: str, body: CompletionCreateParamsNonStreaming | PlainParams) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body}) + "\n"


def test_its_requests_are_read_and_its_types_read_our_answers(
    call: Call, tiny: Path, tmp_path: Path
) -> None:
    chat: CompletionCreateParamsNonStreaming = {
        "model": "any",
        "messages": [
            {"role": "developer", "content": RULES},
            {"role": "user", "content": [{"type": "text", "text": "What is it about?"}]},
        ],
        "max_completion_tokens": 4,
        "temperature": 0,
        "seed": 1,
        "stop": ["\n\n"],
        "response_format": {"type": "text"},
    }
    plain: PlainParams = {"model": "any", "prompt": "Once upon a time", "max_tokens": 3}
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text(line("a", "/v1/chat/completions", chat) + line("b", "/v1/completions", plain))
    assert call("batch", lines, "-o", out, "-m", tiny).exit_code == 0
    one, two = map(json.loads, out.read_text().splitlines())
    assert [row["response"]["status_code"] for row in (one, two)] == [200, 200]
    assert one["error"] is None and one["id"] != two["id"]
    said = ChatCompletion.model_validate(one["response"]["body"], strict=True)
    assert said.choices[0].message.role == "assistant" and said.usage is not None
    assert said.choices[0].finish_reason in ("stop", "length")
    assert said.usage.completion_tokens == 4 and said.usage.prompt_tokens_details is not None
    assert said.usage.total_tokens == said.usage.prompt_tokens + 4
    assert 0 <= (said.usage.prompt_tokens_details.cached_tokens or 0) < said.usage.prompt_tokens
    wrote = Completion.model_validate(two["response"]["body"], strict=True)
    assert wrote.usage is not None and wrote.usage.completion_tokens == 3


def test_its_client_is_answered_by_the_simulated_provider() -> None:
    profile = Profile(min_prefix=16, block=16, requests=2, counts="fixed")
    with (
        served(Provider(profile, lambda prefix, text: f"said {text}")) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-test", max_retries=0) as client,
    ):
        for cached in (False, True):
            said = client.chat.completions.create(
                model="simulated",
                messages=[
                    {"role": "system", "content": RULES},
                    {"role": "user", "content": "hello"},
                ],
                max_completion_tokens=8,
            )
            assert said.choices[0].message.content == "said hello" and said.usage is not None
            details = said.usage.prompt_tokens_details
            assert details is not None and bool(details.cached_tokens) is cached
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(
                model="simulated", messages=[{"role": "user", "content": "hello"}]
            )
        assert "retry-after-ms" in refused.value.response.headers
