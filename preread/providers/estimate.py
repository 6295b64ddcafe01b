"""How many tokens a text has in somebody else's tokenizer: bytes times what its counts taught."""

from __future__ import annotations

from collections.abc import Sequence

from preread.types import Message

FIRST = 0.25  # tokens per byte: English prose in the vocabularies of 2024 to 2026
PER_MESSAGE = 4  # what a chat template adds
WEIGHT = 0.05  # of one more answer


class Estimate:
    """Learns while answers come in."""

    def __init__(self) -> None:
        self._ratio = FIRST
        self._seen = 0

    def tokens(self, messages: Sequence[Message]) -> int:
        """Of messages as the template lays them out, roughly."""
        size = sum(_bytes(message.content) for message in messages)
        return int(size * self._ratio) + PER_MESSAGE * len(messages)

    def of_text(self, text: str) -> int:
        return int(_bytes(text) * self._ratio) + 1

    def learn(self, messages: Sequence[Message], tokens: int) -> None:
        """A prompt had so many."""
        size = sum(_bytes(message.content) for message in messages)
        told = (tokens - PER_MESSAGE * len(messages)) / size if size else 0.0
        if told > 0:
            self._seen += 1
            self._ratio += (told - self._ratio) * max(WEIGHT, 1 / self._seen)


def _bytes(text: str) -> int:
    """In UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
