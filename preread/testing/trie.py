"""What FakeBackend has read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any


class Trie:
    """Token sequences that were read."""

    def __init__(self) -> None:
        self._root: dict[int, Any] = {}

    def known(self, tokens: list[int]) -> int:
        """Length of the longest prefix of `tokens` that was read."""
        node = self._root
        for i, token in enumerate(tokens):
            if token not in node:
                return i
            node = node[token]
        return len(tokens)

    def forget(self, tokens: list[int]) -> None:
        """What begins with `tokens`, and what only led there."""
        if not tokens or self.known(tokens) < len(tokens):
            return
        node, cut = self._root, (self._root, tokens[0])
        for token, child in pairwise(tokens):
            node = node[token]
            if len(node) > 1:
                cut = node, child
        del cut[0][cut[1]]

    def learn(self, tokens: list[int]) -> None:
        node = self._root
        for token in tokens:
            node = node.setdefault(token, {})
