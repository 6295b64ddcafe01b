"""Every provider's token counts as the same four.

What they call input differs: OpenAI, Gemini, DeepSeek, vLLM, SGLang, llama-server and Ollama count
cached tokens into the prompt, Anthropic leaves cache reads and writes out of `input_tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple

MOST = 1 << 28  # tokens of a count that can be believed; sums of some stay 32-bit numbers


class Counts(NamedTuple):
    """Tokens of one answered request. prompt = cached + computed; written: of the computed ones,
    those billed as a cache write; told: False where the server does not say what it reused, so that
    cached is 0 for want of knowledge."""

    cached: int = 0
    computed: int = 0
    output: int = 0
    written: int = 0
    told: bool = True

    @property
    def prompt(self) -> int:
        return self.cached + self.computed

    def plus(self, more: Counts) -> Counts:
        """Of two requests that answer one row."""
        return Counts(
            self.cached + more.cached,
            self.computed + more.computed,
            self.output + more.output,
            self.written + more.written,
            self.told and more.told,
        )


Usage = Mapping[str, Any]


def openai(usage: Usage) -> Counts:
    """`usage` of chat completions and completions; also vLLM (--enable-prompt-tokens-details) and
    SGLang (--enable-cache-report), which leave the details out unless told to give them."""
    details = usage.get("prompt_tokens_details")
    cached = _int(details, "cached_tokens")
    output, written = _int(usage, "completion_tokens"), _int(details, "cache_write_tokens")
    return _inclusive(_int(usage, "prompt_tokens"), cached, output, written, told=bool(details))


def deepseek(usage: Usage) -> Counts:
    """Hits and misses apart, beside OpenAI's fields."""
    if "prompt_cache_hit_tokens" not in usage:
        return openai(usage)
    hit, miss = _int(usage, "prompt_cache_hit_tokens"), _int(usage, "prompt_cache_miss_tokens")
    return Counts(hit, miss, _int(usage, "completion_tokens"))


def anthropic(usage: Usage) -> Counts:
    """`input_tokens` are those after the last breakpoint alone."""
    written = _int(usage, "cache_creation_input_tokens")
    read, fresh = _int(usage, "cache_read_input_tokens"), _int(usage, "input_tokens")
    return Counts(read, fresh + written, _int(usage, "output_tokens"), written)


def gemini(usage: Usage) -> Counts:
    """`usageMetadata`; thoughts are output that is paid for."""
    prompt = _int(usage, "promptTokenCount") + _int(usage, "toolUsePromptTokenCount")
    output = _int(usage, "candidatesTokenCount") + _int(usage, "thoughtsTokenCount")
    return _inclusive(prompt, _int(usage, "cachedContentTokenCount"), output)


def ollama(reply: Usage) -> Counts:
    """The counts of /api/chat and /api/generate; releases before 0.33.3 do not say what was
    cached, those of 2024 leave the prompt out when all of it was."""
    told = "prompt_eval_cached_count" in reply
    cached = _int(reply, "prompt_eval_cached_count")
    prompt, output = _int(reply, "prompt_eval_count"), _int(reply, "eval_count")
    return _inclusive(prompt, cached, output, told=told)


def llama_server(timings: Usage) -> Counts:
    """`timings` of llama-server: what it took from the slot, and what it read."""
    return Counts(_int(timings, "cache_n"), _int(timings, "prompt_n"), _int(timings, "predicted_n"))


def _inclusive(
    prompt: int, cached: int, output: int, written: int = 0, told: bool = True
) -> Counts:
    cached = min(cached, prompt)
    return Counts(cached, prompt - cached, output, min(written, prompt - cached), told)


def _int(table: Mapping[str, Any] | None, key: str) -> int:
    """Absent, null, negative and endless counts are none."""
    value = table.get(key) if table else None
    if type(value) is int:
        return min(max(0, value), MOST)
    finite = isinstance(value, int) or (isinstance(value, float) and isfinite(value))
    return min(max(0, int(value)), MOST) if finite and value is not None else 0
