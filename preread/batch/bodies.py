"""Bodies of OpenAI's requests, as batch files and our server are sent them.

Format: https://platform.openai.com/docs/api-reference/chat. Fields that would change an answer and
that we cannot honour are refused by name, never left out in silence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from preread.backend import Generate
from preread.types import Message, Prefix, Sampling

# Fields that do nothing with these values; with others they are refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stream": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "store": (False,),
}
LABELS = ("user", "metadata", "safety_identifier")  # say who asks; no answer depends on them
WHOLE, SEED = 2**31, 2**63  # that numbers stay below


@dataclass(frozen=True, slots=True)
class Defaults:
    """For what a body does not say. model: for all rows, in place of what they say; "": theirs."""

    model: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None


class Wrong(Exception):
    """(field, what is wrong with it)."""


def without_neutral(given: dict[str, Any]) -> None:
    """Takes out the fields that change nothing. Raises Wrong for those that would."""
    for field in list(given):
        neutral = NEUTRAL.get(field, ())
        if given[field] in neutral:
            del given[field]
        elif neutral:
            expected = " or ".join(map(json.dumps, neutral))
            raise Wrong(field, f"{given[field]!r} is not supported, only {expected}")


def generate(given: dict[str, Any], defaults: Defaults) -> Generate:
    """Takes out the fields that it understands. Raises Wrong."""
    limits = [given.pop(key) for key in ("max_completion_tokens", "max_tokens") if key in given]
    must(limits[1:] in ([], limits[:1]), "max_tokens", limits[1:], "max_completion_tokens, or none")
    limit = limits[0] if limits else defaults.max_tokens
    must(whole(limit) and 1 <= limit < WHOLE, "max_tokens", limit, "1 to 2^31 - 1")
    temperature = given.pop("temperature", defaults.temperature)
    must(number(temperature) and 0 <= temperature <= 2, "temperature", temperature, "0 to 2")
    top_p = given.pop("top_p", 1.0)
    must(number(top_p) and 0 < top_p <= 1, "top_p", top_p, "above 0, to 1")
    top_k = given.pop("top_k", 0)
    must(whole(top_k) and 0 <= top_k < WHOLE, "top_k", top_k, "0 to 2^31 - 1")
    seed = given.pop("seed", defaults.seed)
    good = seed is None or (whole(seed) and -SEED <= seed < SEED)
    must(good, "seed", seed, "a whole number of 64 bits")
    stop = given.pop("stop", ())
    stops = (stop,) if isinstance(stop, str) else stop
    texts = isinstance(stops, list | tuple) and all(isinstance(s, str) and s for s in stops)
    must(texts, "stop", stop, "a text or a list of texts")
    ignore = given.pop("ignore_eos", False)
    must(isinstance(ignore, bool), "ignore_eos", ignore, "true or false")
    work = Generate(limit, Sampling(float(temperature), float(top_p), top_k, seed), tuple(stops))
    return replace(work, schema=schema_of(given.pop("response_format", None)), ignore_eos=ignore)


def schema_of(given: Any) -> dict[str, Any] | None:
    """Of response_format."""
    if given is None:
        return None
    where = "response_format"
    must(isinstance(given, dict), where, given, "an object")
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    must(kind == "json_schema", f"{where}.type", kind, "text, json_object or json_schema")
    named = given.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    must(isinstance(schema, dict), f"{where}.json_schema.schema", schema, "an object")
    assert isinstance(schema, dict)
    return schema


def conversation(messages: Any) -> tuple[Prefix, str]:
    """What is read before the last user turn, and that turn. Raises Wrong."""
    prefix = leading(messages)
    if not prefix.history or prefix.history[-1].role != "user":
        raise Wrong("messages", "the last message must be of the user")
    return Prefix(prefix.system, prefix.history[:-1]), prefix.history[-1].content


def leading(messages: Any) -> Prefix:
    """All messages as what is read once. Raises Wrong."""
    where = "messages"
    must(isinstance(messages, list) and messages != [], where, messages, "a list of messages")
    turns = [_turn(message, f"{where}[{i}]") for i, message in enumerate(messages)]
    system = ""
    if turns[0].role == "system":
        system = turns.pop(0).content
    later = [i for i, turn in enumerate(turns) if turn.role == "system"]
    if later:
        raise Wrong(where, "a system message is supported as the first one only")
    return Prefix(system, tuple(turns))


def _turn(message: Any, where: str) -> Message:
    must(isinstance(message, dict), where, message, "an object")
    role, content = message.get("role"), message.get("content")
    if role == "developer":
        role = "system"
    must(role in ("system", "user", "assistant"), f"{where}.role", role, "system, user, assistant")
    for field, value in message.items():
        if field not in ("role", "content") and value not in (None, []):
            raise Wrong(f"{where}.{field}", "is not supported; remove it")
    if isinstance(content, list):
        for i, part in enumerate(content):
            is_text = isinstance(part, dict) and part.get("type") == "text"
            must(is_text, f"{where}.content[{i}]", part, "a part of type text")
            text = part.get("text")
            must(isinstance(text, str), f"{where}.content[{i}].text", text, "a text")
        content = "".join(part["text"] for part in content)
    must(isinstance(content, str), f"{where}.content", content, "a text")
    return Message(role, content)


def one_prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    must(isinstance(prompt, str) and prompt != "", "prompt", prompt, "one text")
    assert isinstance(prompt, str)
    return prompt


def must(right: bool, field: str, value: Any, expected: str) -> None:
    if not right:
        got = "missing" if value is None else repr(value)
        got = got if len(got) <= 60 else got[:57] + "…"
        raise Wrong(field, f"{got}, expected {expected}")


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
