"""Counts from what the providers themselves publish as examples."""

from __future__ import annotations

import json

import pytest

from preread.providers import usage
from preread.providers.usage import Counts

# platform.openai.com/docs/guides/prompt-caching
OPENAI = """{"prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306,
 "prompt_tokens_details": {"cached_tokens": 1920},
 "completion_tokens_details": {"reasoning_tokens": 0, "accepted_prediction_tokens": 0,
                               "rejected_prediction_tokens": 0}}"""
# docs.anthropic.com, prompt caching: the first and the second call of the book example
ANTHROPIC_FIRST = """{"cache_creation_input_tokens": 188086, "cache_read_input_tokens": 0,
 "input_tokens": 21, "output_tokens": 393}"""
ANTHROPIC_THEN = """{"cache_creation_input_tokens": 0, "cache_read_input_tokens": 188086,
 "input_tokens": 21, "output_tokens": 393}"""
# the same page: breakpoints with different lives
ANTHROPIC_LIVES = """{"input_tokens": 2048, "cache_read_input_tokens": 1800,
 "cache_creation_input_tokens": 248, "output_tokens": 503,
 "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100}}"""
# ai.google.dev/gemini-api/docs/caching, in the names of the REST API
GEMINI = """{"promptTokenCount": 696219, "cachedContentTokenCount": 696190,
 "candidatesTokenCount": 214, "totalTokenCount": 696433}"""
# api-docs.deepseek.com, create chat completion
DEEPSEEK = """{"prompt_tokens": 16, "completion_tokens": 10, "total_tokens": 26,
 "prompt_cache_hit_tokens": 0, "prompt_cache_miss_tokens": 16}"""
# ollama's docs/api.md, chat request without streaming
OLLAMA = """{"done": true, "total_duration": 5191566416, "load_duration": 2154458,
 "prompt_eval_count": 26, "prompt_eval_duration": 383809000, "eval_count": 298,
 "eval_duration": 4799921000}"""
# tools/server/README.md of llama.cpp, timings
LLAMA = """{"cache_n": 236, "prompt_n": 1, "prompt_ms": 30.958, "predicted_n": 35,
 "predicted_ms": 661.064}"""


@pytest.mark.parametrize(
    ("read", "published", "counts"),
    [
        (usage.openai, OPENAI, Counts(cached=1920, computed=86, output=300)),
        (usage.anthropic, ANTHROPIC_FIRST, Counts(0, 188107, 393, written=188086)),
        (usage.anthropic, ANTHROPIC_THEN, Counts(188086, 21, 393)),
        (usage.anthropic, ANTHROPIC_LIVES, Counts(1800, 2296, 503, written=248)),
        (usage.gemini, GEMINI, Counts(696190, 29, 214)),
        (usage.deepseek, DEEPSEEK, Counts(0, 16, 10)),
        (usage.ollama, OLLAMA, Counts(0, 26, 298, told=False)),
        (usage.llama_server, LLAMA, Counts(236, 1, 35)),
    ],
)
def test_published_examples(read, published, counts):
    assert read(json.loads(published)) == counts


def test_what_is_written_is_part_of_what_is_computed():
    details = {"cached_tokens": 0, "cache_write_tokens": 2000}
    told = {"prompt_tokens": 2050, "completion_tokens": 5, "prompt_tokens_details": details}
    assert usage.openai(told) == Counts(0, 2050, 5, written=2000)


@pytest.mark.parametrize("details", [None, {}])
def test_a_server_that_does_not_say_what_it_reused(details):
    """vLLM without --enable-prompt-tokens-details, SGLang without --enable-cache-report."""
    told = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": details}
    assert usage.openai(told) == Counts(0, 12, 3, told=False)


def test_deepseek_without_its_own_fields_is_openai():
    assert usage.deepseek(json.loads(OPENAI)) == Counts(1920, 86, 300)


def test_gemini_thoughts_are_output():
    said = {"promptTokenCount": 10, "candidatesTokenCount": 5, "thoughtsTokenCount": 40}
    assert usage.gemini(said) == Counts(0, 10, 45)


def test_ollama_since_it_says_what_it_reused():
    said = {"prompt_eval_count": 29, "prompt_eval_cached_count": 20, "eval_count": 3}
    assert usage.ollama(said) == Counts(20, 9, 3)


def test_nothing_is_negative_and_nothing_is_required():
    for read in (usage.openai, usage.anthropic, usage.gemini, usage.deepseek, usage.ollama):
        assert read({})[:4] == (0, 0, 0, 0)
    strange = {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}
    assert usage.openai(strange) == Counts(5, 0, 0)


def test_counts_add_up():
    assert Counts(1, 2, 3, 1).plus(Counts(10, 20, 30, 5, False)) == Counts(11, 22, 33, 6, False)
