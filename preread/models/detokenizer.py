"""Tokens -> text, one token at a time, exactly.

A token stands for bytes, whatever comes before or after it, so a stream of tokens is a stream of
bytes and its text is what an incremental UTF-8 decoder makes of them. Nothing is emitted before its
character is complete, and nothing emitted is ever taken back. Where the bytes are no UTF-8 (a model
can write such tokens) the text has U+FFFD; there alone the number of them may differ from the
`tokenizers` library.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.errors import UnsupportedModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Published

    from preread.models.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Detokenizer:
    """Text of one answer as it grows. skip_special: special tokens write nothing."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids if skip_special else frozenset()
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._begun = False

    def push(self, tokens: Iterable[int]) -> str:
        """The new text that these tokens complete, possibly empty."""
        data = b""
        for token in tokens:
            if token in self._skip:
                continue
            piece = self._tokenizer.token_bytes(token)
            if not self._begun and piece:
                # sentence-piece models write the space before a word; the first has none
                piece = piece[self._tokenizer.leading_spaces(token) :]
                self._begun = True
            data += piece
        return self._decode(data)

    def finish(self) -> str:
        """What is left when the answer ends within a character: U+FFFD or nothing."""
        return self._decode(b"", True)


class TokenDecoder:
    """token id -> bytes, by the `decoder` section of tokenizer.json."""

    def __init__(self, published: Published, path: Path) -> None:
        """Raises UnsupportedModel for a section that is neither byte-level nor sentence-piece."""
        self._published = published
        state = None if published.decoder is None else json.loads(published.decoder.__getstate__())
        parts = list(_parts(state))
        kinds = {part["type"] for part in parts}
        self._byte_level = "ByteLevel" in kinds
        if not self._byte_level and (
            not kinds & {"Metaspace", "Replace"}
            or kinds - {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
        ):
            raise UnsupportedModel(
                f"{path}: tokens of this kind cannot be turned into text exactly: {sorted(kinds)}.",
                hint="Choose a model with a byte-level or sentence-piece BPE tokenizer.",
            )
        self._alphabet = {char: byte for byte, char in enumerate(byte_alphabet())}
        self._fallback = "ByteFallback" in kinds
        self._strip = next((p["start"] for p in parts if p["type"] == "Strip"), 0)
        self._meta = any(
            p["type"] == "Metaspace" and p.get("prepend_scheme", "always") != "never" for p in parts
        )

    def __call__(self, token: int) -> bytes:
        text = self._published.id_to_token(token)
        if text is None:
            return b""
        if self._byte_level:
            try:
                return bytes(self._alphabet[char] for char in text)
            except KeyError:  # an added token holds plain text
                return str(text).encode()
        if self._fallback and (match := _BYTE.fullmatch(text)):
            return bytes((int(match[1], 16),))
        return str(text).replace("▁", " ").encode()

    def leading_spaces(self, token: int) -> int:
        """How many bytes of this token are dropped when it begins a text."""
        data = self(token)
        spaces = len(data) - len(data.lstrip(b" "))
        return spaces if self._meta else min(spaces, self._strip)


def _parts(state: Any) -> Iterator[dict[str, Any]]:
    if state is not None and state["type"] == "Sequence":
        for part in state["decoders"]:
            yield from _parts(part)
    elif state is not None:
        yield state


def byte_alphabet() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    chars = {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}
    return [chars[byte] for byte in range(256)]
