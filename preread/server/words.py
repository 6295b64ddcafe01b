"""Text as a model's tokens, for who asks to see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from preread.types import Prefix

NO_CHANCE = -9999.0  # what OpenAI writes for a log-probability of minus infinity


class Words(Protocol):
    """The tokenizer and chat template of a model that is computed here. Thread-safe."""

    @property
    def vocabulary(self) -> int:
        """Ids lie below it."""
        ...

    def lay_out(self, prefix: Prefix, question: str | None) -> list[int]:
        """A conversation: what is read once, or the whole prompt. Raises RequestError if the
        template refuses it."""
        ...

    def encode(self, text: str, special: bool) -> list[int]:
        """A text; special: with what the model wants at a beginning."""
        ...

    def piece(self, token: int) -> bytes:
        """What a token stands for."""
        ...


def chat_logprobs(
    words: Words, tokens: Sequence[int], logprobs: Sequence[float]
) -> list[dict[str, Any]]:
    """`choices[].logprobs.content` of a chat completion."""
    said = []
    for token, log in zip(tokens, logprobs, strict=True):
        piece = words.piece(token)
        text = piece.decode(errors="replace")
        said.append(
            {"token": text, "bytes": list(piece), "logprob": finite(log), "top_logprobs": []}
        )
    return said


def plain_logprobs(
    words: Words, tokens: Sequence[int], logprobs: Sequence[float | None], start: int = 0
) -> dict[str, Any]:
    """`choices[].logprobs` of a completion; start: characters before it."""
    texts = [words.piece(token).decode(errors="replace") for token in tokens]
    offsets = [start]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    logs = [None if log is None else finite(log) for log in logprobs]
    return {
        "tokens": texts,
        "token_logprobs": logs,
        "top_logprobs": None,
        "text_offset": offsets[:-1],
    }


def finite(log: float) -> float:
    """JSON has no infinity."""
    return log if math.isfinite(log) else NO_CHANCE
