"""Where a running sequence's own KV lies: small pages, held by one sequence each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from preread.engine.kv import KVShape, kv_of
from preread.engine.staging import staged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from preread.types import Int32Array


class Pages:
    """kv: of `pages` x `page_tokens` tokens. A page is zeroed before its first use, so that
    what lies behind a sequence's end is always finite (masked keys must not be NaN)."""

    def __init__(self, shape: KVShape, pages: int, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self.kv = kv_of(shape, pages, page_tokens)
        self._stack = np.arange(pages - 1, -1, -1, dtype=np.int32)
        self.free = pages
        self.total = pages
        self._touched = 0

    def take(self, count: int) -> Int32Array:
        """`count` <= free pages, the most recently used first."""
        assert count <= self.free, "the scheduler took more pages than there are"
        self.free -= count
        ids = self._stack[self.free : self.free + count][::-1].copy()
        if count and (top := int(ids.max()) + 1) > self._touched:
            self.zero(np.arange(self._touched, top, dtype=np.int32))
            self._touched = top
        return ids

    def give(self, ids: Int32Array, *, scrub: bool = False) -> None:
        """Return pages. scrub: nobody has seen that what they hold is finite."""
        self._stack[self.free : self.free + len(ids)] = ids[::-1]
        self.free += len(ids)
        if scrub and len(ids):
            self.zero(ids)

    def zero(self, ids: Int32Array) -> None:
        """Make what pages hold finite."""
        self.kv.clear(self.index(ids))

    def read(self, ids: Int32Array) -> torch.Tensor:
        """The KV in these pages, in order: [layers, 2, G, tokens, D], a copy."""
        return self.kv.select(self.index(ids)).flatten(3, 4)

    def index(self, ids: Int32Array) -> torch.Tensor:
        return staged([ids], self.kv.shape.device)[0]

    def check(self, held: Iterable[Int32Array]) -> None:
        """Verify that every page is either free or held once. Raises AssertionError."""
        count = np.zeros(self.total, np.int32)
        np.add.at(count, self._stack[: self.free], 1)
        for ids in held:
            np.add.at(count, ids, 1)
        assert (count == 1).all(), "a page is lost or held twice"
