"""Pieces that chat dialects share."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from preread.types import Finish, Message

FINISH = {
    "stop": Finish.STOP,
    "length": Finish.LENGTH,
    "eos": Finish.STOP,
    "end_turn": Finish.STOP,
    "stop_sequence": Finish.STOP,
    "max_tokens": Finish.LENGTH,
    "STOP": Finish.STOP,
    "MAX_TOKENS": Finish.LENGTH,
}


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as OpenAI, DeepSeek and Ollama write them."""
    return [{"role": m.role, "content": m.content} for m in messages]


def marked(messages: Sequence[Message], shared: int, mark: dict[str, Any]) -> list[dict[str, Any]]:
    """The same with a mark at the end of the shared part."""
    out = plain(messages)
    if shared:
        last = out[shared - 1]
        last["content"] = [{"type": "text", "text": last["content"], **mark}]
    return out


def text(content: Any) -> Any:
    """Parts as one text (some servers put thoughts beside them); anything else as it is."""
    if not isinstance(content, list):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def logprobs(choice: dict[str, Any]) -> list[float] | None:
    """Of each token written, from a chat completion or a completion; None if there are none."""
    given = choice.get("logprobs") or {}
    if given.get("content") is not None:
        return [float(token["logprob"]) for token in given["content"]]
    if given.get("token_logprobs") is not None:
        return [float(log) for log in given["token_logprobs"]]
    return None


def ids(choice: dict[str, Any]) -> list[int] | None:
    """Of each token written, where the server names them beside the log-probabilities
    (llama-server)."""
    content = (choice.get("logprobs") or {}).get("content") or [{}]
    found = [token.get("id") for token in content]
    return found if None not in found else None


def salt() -> str:
    """What no other request has: nothing cached can match."""
    return secrets.token_hex(16)
