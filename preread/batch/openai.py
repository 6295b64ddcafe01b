"""OpenAI's batch file: a line `{"custom_id", "method", "url", "body"}` per request.

Format: https://platform.openai.com/docs/api-reference/batch. Two urls are understood; fields that
would change an answer and that we cannot honour are refused by name, never left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from preread.backend import Generate
from preread.batch.files import expand, lines, parsed
from preread.batch.order import Order
from preread.batch.table import BLOCK, Faults, Rows
from preread.types import Message, Prefix, Sampling

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
FORMS = {CHAT: "chat", COMPLETION: "completion"}
LINE = ("custom_id", "method", "url", "body")
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
KEPT = 4096  # different options and prefixes remembered while reading


@dataclass(frozen=True, slots=True)
class Defaults:
    """For what a body does not say. model: for all rows, in place of what they say; "": theirs."""

    model: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None


class _Wrong(Exception):
    """(field, what is wrong with it)."""


class BatchFile:
    """See batch.table.Table."""

    fan = 1
    fixed = 0
    columns: Sequence[str] = ()

    def __init__(self, patterns: Sequence[str], defaults: Defaults) -> None:
        self._names = expand(patterns)
        self._defaults = defaults
        self._orders: dict[str, Order] = {}
        self._prefixes: dict[Prefix, Prefix] = {}

    @property
    def files(self) -> list[str]:
        return self._names

    def read(self, faults: Faults) -> Iterator[Rows]:
        rows = Rows()
        for number, name in enumerate(self._names):
            for at, text in lines(number, name, faults):
                if (value := parsed(text, name, at, faults)) is None:
                    continue
                try:
                    self._add(rows, (number, at), value, faults)
                except _Wrong as exc:
                    faults.add(name, at, *exc.args)
                except RecursionError:
                    faults.add(name, at, "body", "is nested too deeply")
                if len(rows) >= BLOCK:
                    yield rows
                    rows = Rows()
        if len(rows):
            yield rows

    def _add(self, rows: Rows, at: tuple[int, int], line: dict[str, Any], faults: Faults) -> None:
        if unknown := [name for name in line if name not in LINE]:
            raise _Wrong(unknown[0], f"unknown; a line has {', '.join(LINE)}")
        fields: list[Any] = [line.get(field) for field in LINE]
        name, method, url, body = fields
        _must(isinstance(name, str) and name != "", "custom_id", name, "a text that is not empty")
        _must(method == "POST", "method", method, '"POST"')
        _must(url in FORMS, "url", url, " or ".join(FORMS))
        _must(isinstance(body, dict), "body", body, "an object")
        given = {key: value for key, value in body.items() if value is not None}
        for label in LABELS:
            if given.pop(label, None) is not None:
                faults.note(f"body.{label} labels a request and was not passed on")
        if url == CHAT:
            prefix, text = _conversation(given.pop("messages", None))
        else:
            prefix, text = Prefix(""), _prompt(given.pop("prompt", None))
        prefix = self._prefixes.setdefault(prefix, prefix)
        if len(self._prefixes) > KEPT:
            self._prefixes.clear()
        rows.add(at, self._order(url, given), prefix, text, id=name)

    def _order(self, url: str, given: dict[str, Any]) -> Order:
        """Of what is left of a body; the same object for the same options."""
        key = url + json.dumps(given, sort_keys=True)
        found = self._orders.get(key)
        if found is None:
            if len(self._orders) > KEPT:
                self._orders.clear()
            found = self._orders[key] = self._read(url, given)
        return found

    def _read(self, url: str, given: dict[str, Any]) -> Order:
        for field in list(given):
            neutral = NEUTRAL.get(field, ())
            if given[field] in neutral:
                del given[field]
            elif neutral:
                expected = " or ".join(map(json.dumps, neutral))
                raise _Wrong(f"body.{field}", f"{given[field]!r} is not supported, only {expected}")
        model = given.pop("model", None)
        _must(isinstance(model, str) and model != "", "body.model", model, "a text")
        work = _generate(given, self._defaults)
        if given:
            raise _Wrong(f"body.{next(iter(given))}", "is not supported; remove it")
        return Order(self._defaults.model or model, work, raw=url == COMPLETION, form=FORMS[url])


def _generate(given: dict[str, Any], defaults: Defaults) -> Generate:
    """Takes out the fields that it understands."""
    limits = [given.pop(key) for key in ("max_completion_tokens", "max_tokens") if key in given]
    limit = limits[0] if limits else defaults.max_tokens
    _must(_whole(limit) and 1 <= limit < WHOLE, "body.max_tokens", limit, "1 to 2^31 - 1")
    temperature = given.pop("temperature", defaults.temperature)
    _must(_number(temperature) and 0 <= temperature <= 2, "body.temperature", temperature, "0 to 2")
    top_p = given.pop("top_p", 1.0)
    _must(_number(top_p) and 0 < top_p <= 1, "body.top_p", top_p, "above 0, to 1")
    top_k = given.pop("top_k", 0)
    _must(_whole(top_k) and 0 <= top_k < WHOLE, "body.top_k", top_k, "0 to 2^31 - 1")
    seed = given.pop("seed", defaults.seed)
    good = seed is None or (_whole(seed) and -SEED <= seed < SEED)
    _must(good, "body.seed", seed, "a whole number of 64 bits")
    stop = given.pop("stop", ())
    stops = (stop,) if isinstance(stop, str) else stop
    texts = isinstance(stops, list | tuple) and all(isinstance(s, str) and s for s in stops)
    _must(texts, "body.stop", stop, "a text or a list of texts")
    ignore = given.pop("ignore_eos", False)
    _must(isinstance(ignore, bool), "body.ignore_eos", ignore, "true or false")
    work = Generate(limit, Sampling(float(temperature), float(top_p), top_k, seed), tuple(stops))
    return replace(work, schema=_schema(given.pop("response_format", None)), ignore_eos=ignore)


def _schema(given: Any) -> dict[str, Any] | None:
    """Of response_format."""
    if given is None:
        return None
    where = "body.response_format"
    _must(isinstance(given, dict), where, given, "an object")
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    _must(kind == "json_schema", f"{where}.type", kind, "text, json_object or json_schema")
    named = given.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    _must(isinstance(schema, dict), f"{where}.json_schema.schema", schema, "an object")
    assert isinstance(schema, dict)
    return schema


def _conversation(messages: Any) -> tuple[Prefix, str]:
    """What is read before the last user turn, and that turn."""
    where = "body.messages"
    _must(isinstance(messages, list) and messages != [], where, messages, "a list of messages")
    turns = [_turn(message, f"{where}[{i}]") for i, message in enumerate(messages)]
    system = ""
    if turns[0].role == "system":
        system = turns.pop(0).content
    later = [i for i, turn in enumerate(turns) if turn.role == "system"]
    if later:
        raise _Wrong(where, "a system message is supported as the first one only")
    if not turns or turns[-1].role != "user":
        raise _Wrong(where, "the last message must be of the user")
    return Prefix(system, tuple(turns[:-1])), turns[-1].content


def _turn(message: Any, where: str) -> Message:
    _must(isinstance(message, dict), where, message, "an object")
    role, content = message.get("role"), message.get("content")
    if role == "developer":
        role = "system"
    _must(role in ("system", "user", "assistant"), f"{where}.role", role, "system, user, assistant")
    for field, value in message.items():
        if field not in ("role", "content") and value is not None:
            raise _Wrong(f"{where}.{field}", "is not supported; remove it")
    if isinstance(content, list):
        for i, part in enumerate(content):
            is_text = isinstance(part, dict) and part.get("type") == "text"
            _must(is_text, f"{where}.content[{i}]", part, "a part of type text")
            text = part.get("text")
            _must(isinstance(text, str), f"{where}.content[{i}].text", text, "a text")
        content = "".join(part["text"] for part in content)
    _must(isinstance(content, str), f"{where}.content", content, "a text")
    return Message(role, content)


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    _must(isinstance(prompt, str) and prompt != "", "body.prompt", prompt, "one text")
    assert isinstance(prompt, str)
    return prompt


def _must(right: bool, field: str, value: Any, expected: str) -> None:
    if not right:
        got = "missing" if value is None else repr(value)
        got = got if len(got) <= 60 else got[:57] + "…"
        raise _Wrong(field, f"{got}, expected {expected}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
