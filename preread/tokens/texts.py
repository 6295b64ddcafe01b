"""Text of whole answers. `Tokenizer.decode` is the slow twin."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from preread.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from preread.backend import Ragged


class Texts:
    """Decodes answers that have ended, each in one go. The bytes of a token are worked out once.
    Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = _Bytes(tokenizer)

    def __call__(self, answers: Ragged) -> list[str]:
        """The text of each; special tokens write nothing, bytes that are no UTF-8 are U+FFFD."""
        tokens, ends = answers.values.tolist(), answers.offsets.tolist()
        return [self._text(tokens[a:b]) for a, b in pairwise(ends)]

    def _text(self, tokens: list[int]) -> str:
        data = b"".join(map(self._bytes.__getitem__, tokens))
        if data[:1] == b" ":  # sentence-piece models write the space before a word; the first has
            first = next(token for token in tokens if self._bytes[token])  # none
            data = data[self._tokenizer.leading_spaces(first) :]
        return data.decode("utf-8", errors="replace")


class _Bytes(dict[int, bytes]):
    """token -> the bytes it writes, filled as they are asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> bytes:
        special = token in self._tokenizer.special_ids
        self[token] = piece = b"" if special else self._tokenizer.token_bytes(token)
        return piece
