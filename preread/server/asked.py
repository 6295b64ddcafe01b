"""What a request's body asks for. A field that would change the answer is honoured or refused by
name; nothing is left out in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from preread.backend import Choose, Generate, LogLikelihood
from preread.batch.bodies import (
    LABELS,
    WHOLE,
    Defaults,
    Wrong,
    conversation,
    generate,
    leading,
    must,
    whole,
    without_neutral,
)
from preread.server.refusal import Refusal
from preread.tokens.ragged import stacked
from preread.types import Prefix

# As in batch.bodies: fields that do nothing with these values.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_logprobs": (0,),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
}
SAYS_WHO = (*LABELS, "prompt_cache_key", "prompt_cache_retention")  # no answer depends on them
MOST_PROMPTS = 256
MOST_STOPS = 64  # each is sought at every token


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. prefix, prompts: of a chat what is before the last turn, and that turn; of a
    completion nothing, and whole prompts as text or token ids. usage: at the end of a stream, too;
    ids: say the tokens written; reuse, keep: see RequestBatch; echo: score the prompts
    themselves."""

    form: Literal["chat", "completion"]
    model: str
    work: Generate | Choose | LogLikelihood
    prefix: Prefix
    prompts: Sequence[str] | Sequence[list[int]]
    stream: bool = False
    usage: bool = False
    ids: bool = False
    reuse: bool = True
    keep: bool = False
    echo: bool = False


def read_chat(body: dict[str, Any], defaults: Defaults) -> Asked:
    """POST /v1/chat/completions. Raises Refusal naming the field."""
    return _read("chat", body, defaults)


def read_completion(body: dict[str, Any], defaults: Defaults) -> Asked:
    """POST /v1/completions. Raises Refusal naming the field."""
    return _read("completion", body, defaults)


@dataclass(frozen=True, slots=True)
class Counted:
    """What is to be told in tokens. text: a text alone, None for a conversation; special: with what
    begins a prompt; question: the last turn, None where the prefix alone is meant."""

    model: str
    text: str | None = None
    special: bool = True
    prefix: Prefix = field(default_factory=lambda: Prefix(""))
    question: str | None = None


def read_counted(body: dict[str, Any]) -> Counted:
    """POST /tokenize, as of vLLM. Raises Refusal naming the field."""
    given = {key: value for key, value in body.items() if value is not None}
    try:
        model = _model(given)
        if "prompt" in given:
            text = given.pop("prompt")
            must(isinstance(text, str), "prompt", text, "a text")
            _sayable("prompt", [text])
            counted = Counted(model, text, _flag(given, "add_special_tokens", True))
        else:
            prefix, question = leading(given.pop("messages", None)), None
            _sayable("messages", [prefix.system, *(turn.content for turn in prefix.history)])
            asks = bool(prefix.history) and prefix.history[-1].role == "user"
            answers = _flag(given, "add_generation_prompt", asks)
            must(answers is asks, "add_generation_prompt", answers, "true after a turn of the user")
            if asks:
                question = prefix.history[-1].content
                prefix = Prefix(prefix.system, prefix.history[:-1])
            counted = Counted(model, prefix=prefix, question=question)
        if given:
            raise Wrong(next(iter(given)), "is not supported; remove it")
        return counted
    except Wrong as exc:
        raise _refused(exc) from None


def _refused(wrong: Wrong) -> Refusal:
    name, what = wrong.args
    return Refusal(400, f"{name}: {what}.", field=name, code="invalid_value")


def _read(form: Literal["chat", "completion"], body: dict[str, Any], defaults: Defaults) -> Asked:
    try:
        return _asked(form, {k: v for k, v in body.items() if v is not None}, defaults)
    except Wrong as exc:
        raise _refused(exc) from None


def _asked(form: Literal["chat", "completion"], given: dict[str, Any], defaults: Defaults) -> Asked:
    for name in SAYS_WHO:
        given.pop(name, None)
    model = _model(given)
    prompts: Sequence[str] | Sequence[list[int]]
    if form == "chat":
        prefix, question = conversation(given.pop("messages", None))
        prompts = [question]
        _sayable("messages", [prefix.system, question, *(turn.content for turn in prefix.history)])
        must(bool(question.strip()), "messages", question, "a last turn that is not empty")
    else:
        prefix, prompts = Prefix(""), _prompts(given.pop("prompt", None))
    reuse, ids = _flag(given, "cache_prompt", True), _flag(given, "return_token_ids", False)
    keep = _flag(given, "keep", bool(prefix.history))
    if "labels" in given or "continuation" in given:
        scored = _scored(given, len(prompts))
        return Asked(form, model, scored, prefix, prompts, ids=ids, reuse=reuse, keep=keep)
    echo = form == "completion" and _flag(given, "echo", False)
    stream, usage = _stream(given)
    if echo:
        must(not stream, "stream", stream, "no stream with echo")
        _echo(given)
    work = _generate(form, given, defaults)
    return Asked(form, model, work, prefix, prompts, stream, usage, ids, reuse, keep, echo)


def _generate(form: str, given: dict[str, Any], defaults: Defaults) -> Generate:
    logprobs = given.pop("logprobs", False)
    if form == "chat":
        must(isinstance(logprobs, bool), "logprobs", logprobs, "true or false")
    else:
        must(logprobs is False or (whole(logprobs) and logprobs == 0), "logprobs", logprobs,
             "0: the tokens' own; alternatives are not known")  # fmt: skip
        logprobs = logprobs is not False
    for name, neutral in NEUTRAL.items():
        if name in given:
            must(given[name] in neutral, name, given[name], " or ".join(map(repr, neutral)))
            del given[name]
    without_neutral(given)
    work = generate(given, defaults)
    must(len(work.stop) <= MOST_STOPS, "stop", len(work.stop), f"up to {MOST_STOPS} texts")
    _sayable("stop", work.stop)
    if given:
        raise Wrong(next(iter(given)), "is not supported; remove it")
    return replace(work, logprobs=logprobs)


def _scored(given: dict[str, Any], rows: int) -> Choose | LogLikelihood:
    """Nothing is written: fields that say how to write would be left out in silence."""
    field = "labels" if "labels" in given else "continuation"
    value = given.pop(field)
    without_neutral(given)
    if given:
        raise Wrong(next(iter(given)), f"says nothing beside {field}; remove it")
    if field == "labels":
        good = isinstance(value, list) and all(isinstance(x, str) and x for x in value)
        must(good and value and len(set(value)) == len(value), field, value,
             "a list of texts, none empty, none twice")  # fmt: skip
        _sayable(field, value)
        return Choose(tuple(value))
    must(rows == 1, field, value, "one prompt")
    if isinstance(value, str):
        must(value != "", field, value, "a text that is not empty")
        _sayable(field, [value])
        return LogLikelihood([value])
    must(_is_ids(value), field, value, "a text or token ids")
    return LogLikelihood(stacked([value]))


def _echo(given: dict[str, Any]) -> None:
    """The prompt's own tokens are scored; nothing is written after them."""
    limit, logprobs = given.get("max_tokens"), given.get("logprobs")
    must(whole(limit) and limit == 0, "max_tokens", limit, "0 with echo: nothing is written")
    must(whole(logprobs) and logprobs == 0, "logprobs", logprobs, "0 with echo")
    del given["max_tokens"]


def _stream(given: dict[str, Any]) -> tuple[bool, bool]:
    """Whether it is one, and whether it ends with the counts."""
    stream = _flag(given, "stream", False)
    options = given.pop("stream_options", None)
    if options is None:
        return stream, False
    must(stream and isinstance(options, dict), "stream_options", options, "none without a stream")
    options = dict(options)
    usage = _flag(options, "include_usage", False)
    must(not options.pop("include_obfuscation", False), "stream_options.include_obfuscation", True,
         "false")  # fmt: skip
    if options:
        raise Wrong(f"stream_options.{next(iter(options))}", "is not supported; remove it")
    return stream, usage


def _prompts(given: Any) -> Sequence[str] | Sequence[list[int]]:
    """One text, several, one list of token ids, several."""
    if isinstance(given, str) or _is_ids(given):
        given = [given]
    right = isinstance(given, list) and 0 < len(given) <= MOST_PROMPTS
    texts = right and all(isinstance(prompt, str) and prompt for prompt in given)
    expected = f"a text, token ids, or a list of up to {MOST_PROMPTS} of either, none empty"
    must(texts or (right and all(map(_is_ids, given))), "prompt", given, expected)
    if texts:
        _sayable("prompt", given)
    found: list[str] | list[list[int]] = given
    return found


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and value != []
        and all(whole(token) and 0 <= token < WHOLE for token in value)
    )


def _model(given: dict[str, Any]) -> str:
    model = given.pop("model", None)
    must(isinstance(model, str) and model != "", "model", model, "a text")
    _sayable("model", [model])
    return str(model)


def _flag(given: dict[str, Any], field: str, default: bool) -> bool:
    value = given.pop(field, default)
    must(isinstance(value, bool), field, value, "true or false")
    return bool(value)


def _sayable(field: str, texts: Sequence[str]) -> None:
    """JSON can write halves of characters, which are no text."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise Wrong(field, f"is not valid Unicode at character {exc.start}") from None
