"""What FakeBackend answers, and when it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from preread.backend import Choose, Generate, LogLikelihood, Ragged, RequestBatch
from preread.errors import RequestError
from preread.types import Prefix

NOT_STATED = "not stated"


class Reply(NamedTuple):
    """What the answer function may return in place of a string. logprob: of every token; error:
    the row fails with this message."""

    text: str
    logprob: float = -0.1
    error: str = ""


Answer = Callable[[Prefix, str], str | Reply]


def find_line(prefix: Prefix, question: str) -> str:
    """The default answer: the value of the `key: value` line whose key shares most words with the
    question, else "not stated"."""
    asked = set(re.findall(r"\w+", question.casefold()))
    best, answer = 0, NOT_STATED
    for line in prefix.system.split("\n"):
        key, colon, value = line.partition(":")
        shared = len(asked & set(re.findall(r"\w+", key.casefold())))
        if colon and value.strip() and shared > best:
            best, answer = shared, value.strip()
    return answer


def check(batch: RequestBatch) -> list[int]:
    """The prefix of every row (-1: none). Raises RequestError for a malformed batch."""
    n, prefixes = len(batch), len(batch.prefixes)
    if batch.prefix_of is None:
        prefix_of = [0 if prefixes else -1] * n
    else:
        prefix_of = np.asarray(batch.prefix_of).tolist()
    wrong = ""
    if len(prefix_of) != n:
        wrong = f"prefix_of has {len(prefix_of)} entries for {n} prompts"
    elif bad := [i for i, p in enumerate(prefix_of) if not -1 <= p < prefixes]:
        wrong = f"row {bad[0]}: prefix_of {prefix_of[bad[0]]} with {prefixes} prefixes"
    elif isinstance(batch.prompts, Ragged) and not batch.raw:
        wrong = "prompts: token ids need raw"
    elif isinstance(batch.work, Generate) and batch.work.max_tokens < 1:
        wrong = f"max_tokens is {batch.work.max_tokens}"
    elif isinstance(batch.work, Choose) and len(set(batch.work.labels)) < len(batch.work.labels):
        wrong = "labels: two are the same"
    elif isinstance(batch.work, Choose) and not all(batch.work.labels or [""]):
        wrong = "labels: none, or an empty one"
    elif isinstance(batch.work, LogLikelihood) and len(batch.work.continuations) != n:
        wrong = f"continuations: {len(batch.work.continuations)} for {n} prompts"
    if wrong:
        raise RequestError(f"Malformed batch: {wrong}.", hint="See preread.backend.RequestBatch.")
    return prefix_of


def example(schema: dict[str, Any]) -> Any:
    """A small value that satisfies a plain JSON schema."""
    if "const" in schema or schema.get("enum"):
        return schema.get("const", (schema.get("enum") or [None])[0])
    kind = schema.get("type", "object")
    if kind == "object":
        return {key: example(value) for key, value in schema.get("properties", {}).items()}
    if kind == "array":
        return [example(schema.get("items", {"type": "null"}))] * schema.get("minItems", 0)
    return {"string": "text", "integer": 0, "number": 0.5, "boolean": True}.get(kind)
