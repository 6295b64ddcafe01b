"""Answers in OpenAI's shapes: whole, or in pieces as they are written.

Formats: https://platform.openai.com/docs/api-reference/chat/object and /completions/object. What
those have no place for (citations, probabilities over labels) is in an object `preread` of its own.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from preread.server.asked import Asked
from preread.server.words import Words, chat_logprobs, finite, plain_logprobs
from preread.types import Choice, Completion, Likelihood, Usage

Result = Completion | Choice | Likelihood


class Reply:
    """To one request."""

    def __init__(self, asked: Asked, words: Words | None) -> None:
        """words: None where tokens are another server's."""
        self._asked = asked
        self._words = words
        self._chat = asked.form == "chat"
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": asked.model,
        }
        kind = "chat.completion" if self._chat else "text_completion"
        self._whole = {**self._head, "object": kind}
        self._piece = {**self._head, "object": f"{kind}.chunk" if self._chat else kind}

    def whole(self, results: Sequence[Result], ids: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
        """ids: of the prompts, where these are echoed."""
        echoed = ids or [()] * len(results)
        choices = [self._choice(i, r, echoed[i]) for i, r in enumerate(results)]
        usage = sum((result.usage for result in results), Usage())
        return {**self._whole, "choices": choices, "usage": counts(usage), **_own(results)}

    def delta(self, text: str, *, first: bool = False) -> dict[str, Any]:
        """A piece of the answer."""
        role = {"role": "assistant"} if first else {}
        said: dict[str, Any] = {"text": text}
        if self._chat:
            said = {"delta": {**role, "content": text}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": None}
        return self._chunk([choice])

    def end(self, result: Completion) -> list[dict[str, Any]]:
        """What comes after the last piece: how it ended, with the log-probabilities of all tokens,
        and the counts, if asked for."""
        said: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        ids = {"token_ids": list(result.tokens)} if self._asked.ids else {}
        choice = {
            "index": 0, **said, "logprobs": self._logs(result),
            "finish_reason": str(result.finish_reason), **ids,
        }  # fmt: skip
        chunks = [{**self._chunk([choice]), **_own([result])}]
        if self._asked.usage:
            chunks.append({**self._chunk([]), "usage": counts(result.usage)})
        return chunks

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self._asked.usage else {}
        return {**self._piece, "choices": choices, **usage}

    def _choice(self, index: int, result: Result, echoed: Sequence[int]) -> dict[str, Any]:
        text = result.text if isinstance(result, Completion) else ""
        finish = str(result.finish_reason) if isinstance(result, Completion) else "stop"
        choice: dict[str, Any] = {"index": index, "finish_reason": finish}
        if isinstance(result, Choice):
            text = result.label
        elif echoed and self._words is not None:
            text = b"".join(map(self._words.piece, echoed)).decode(errors="replace")
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        choice["logprobs"] = self._logs(result, echoed)
        if self._asked.ids and not isinstance(result, Choice):
            choice["token_ids"] = list(result.tokens)
        return choice

    def _logs(self, result: Result, echoed: Sequence[int] = ()) -> dict[str, Any] | None:
        if isinstance(result, Choice) or not result.logprobs or self._words is None:
            return None
        tokens, logs = list(result.tokens), list(result.logprobs)
        if self._chat:
            return {"content": chat_logprobs(self._words, tokens, logs), "refusal": None}
        if echoed:  # nothing comes before the first
            return plain_logprobs(self._words, echoed, [None, *logs])
        return plain_logprobs(self._words, tokens, logs)


def counts(usage: Usage) -> dict[str, Any]:
    """`usage`."""
    prompt = usage.cached_tokens + usage.computed_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output_tokens,
        "total_tokens": prompt + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _own(results: Sequence[Result]) -> dict[str, Any]:
    """What we know beyond OpenAI's fields, of the first result."""
    result = results[0]
    said: dict[str, Any] = {}
    if isinstance(result, Likelihood):
        said |= {"logprob": finite(result.logprob), "is_greedy": result.is_greedy}
    else:
        if isinstance(result, Choice):
            said |= {"probabilities": result.probabilities, "mass": result.mass}
        elif result.context is not None:
            said["citations"] = [asdict(citation) for citation in result.citations]
        if result.context is not None:
            said["context"] = {"name": result.context.name, "version": result.context.version}
            said["unread"] = list(result.unread)
        if result.notes:
            said["notes"] = list(result.notes)
    if result.cached_response is not None:
        said["cached_response"] = result.cached_response._asdict()
    return {"preread": said} if said else {}
