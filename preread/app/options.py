"""How an answer is to be written, as keyword arguments: one list for every way of asking."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, TypedDict

from preread.backend import Generate
from preread.errors import RequestError
from preread.types import Sampling


class AnswerOptions(TypedDict, total=False):
    """max_tokens: longest answer (0: as configured). temperature 0 is greedy; top_p 1 and top_k 0
    are off; seed makes sampling repeatable. stop: strings that end the answer and are cut off.
    schema: a JSON schema the answer satisfies by construction. logprobs: keep each token's natural
    log-probability. ignore_eos: go on to max_tokens."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: Sequence[str]
    schema: dict[str, Any] | None
    logprobs: bool
    ignore_eos: bool


def generate_work(options: AnswerOptions, default_max_tokens: int) -> Generate:
    """The backend's work order of these options. Raises RequestError naming an option that does not
    exist: a misspelt one must not be ignored."""
    known = AnswerOptions.__annotations__
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or [", ".join(known)]
            raise RequestError(f"There is no option {name!r}.", hint=f"Did you mean: {near[0]}?")
    stop = options.get("stop", ())
    return Generate(
        max_tokens=options.get("max_tokens", 0) or default_max_tokens,
        sampling=Sampling(
            options.get("temperature", 0.0),
            options.get("top_p", 1.0),
            options.get("top_k", 0),
            options.get("seed"),
        ),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        schema=options.get("schema"),
        ignore_eos=options.get("ignore_eos", False),
        logprobs=options.get("logprobs", False),
    )


def texts(values: Sequence[str], what: str) -> list[str]:
    """A list of texts, as a list. Raises RequestError for one text, which is a sequence too, and
    for anything in it that is none."""
    listed = [values] if isinstance(values, str) else list(values)
    for i, value in enumerate(listed):
        if isinstance(values, str) or not isinstance(value, str):
            at = what if isinstance(values, str) else f"{what}[{i}]"
            raise RequestError(f"{at} is {value!r}.", hint=f'Give a list of texts: {what}=["…"].')
    return listed
