"""In which order the chunks of a prefix come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from preread.store.chunk import ChunkHeader

# Told, by the loading thread, that all boxes of so many leading layers are verified and where they
# belong.
Layered: TypeAlias = Callable[[int], None]


class Order:
    """Rounds of chunks: span by span; or by layer, the first box of every span, then the second of
    every span, so that the first layers of all tokens are there first. spans: the chunks of each,
    by layer, then head (Layout.chunks). told: by layer, and who is told; None: by span."""

    def __init__(self, spans: Sequence[Sequence[ChunkHeader]], told: Layered | None = None) -> None:
        rounds = spans if told is None else list(zip(*spans, strict=True))
        self.chunks = [chunk for part in rounds for chunk in part]
        self._every = len(rounds[0]) if rounds else 1
        self._last = spans[0][-1].box if spans else None
        self._told = told

    def ends_round(self, n: int) -> bool:
        """Whether the nth chunk is the last of its round."""
        return (n + 1) % self._every == 0

    def came(self, n: int) -> None:
        """All chunks up to the nth, which ends a round, are there."""
        box = self.chunks[n].box
        if self._told is not None and self._last and box.head_end == self._last.head_end:
            self._told(box.layer_end)

    def share(self, n: int) -> float | None:
        """How much of the load has come with the nth chunk; None where spans say it."""
        return None if self._told is None else (n + 1) / len(self.chunks)

    def goes_on(self, token: int) -> bool:
        """Whether a prefix that ends at that token may still become longer than it is."""
        return self._told is not None and token > self.chunks[0].box.token_start
