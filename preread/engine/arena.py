"""Where the KV of prefixes lies: one tensor, cut into extents of equal size.

A run is (slot, length): tokens that lie side by side. A prefix of one run is a strided view
[G, P, D] per layer, which the stock attention kernels read without a copy; so `alloc` looks for
room right behind the tokens it continues, then for free extents in a row, then for any.
An extent may be shared (a segment split inside it), so extents are counted, and freed whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from preread.engine.kv import ALL, KVShape, kv_of
from preread.engine.slots import Bytes, Slots

if TYPE_CHECKING:
    from preread.engine.pages import Pages
    from preread.types import Int32Array

Run = tuple[int, int]  # (first slot, tokens)
Cell = tuple[int, int, int, int]  # layers [i, j), KV heads [g, h); None where it may be: all


class Arena:
    """kv: of `capacity` tokens. `fill[e]` counts the slots of extent e that are taken, from its
    start: whoever continues the last of them may use the rest. Not thread-safe: the engine thread
    alone allocates.
    """

    def __init__(self, shape: KVShape, extents: int, extent_tokens: int) -> None:
        self.shape = shape
        self.extent_tokens = extent_tokens
        self.capacity = extents * extent_tokens
        self.kv = kv_of(shape, self.capacity)
        raw = self.kv.raw()
        self._bytes = None if raw is None else Bytes(raw, shape.head_dim * shape.dtype.itemsize)
        self.refs = np.zeros(extents, np.int32)
        self.fill = np.zeros(extents, np.int32)

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values of one token, all layers and heads of the model."""
        return self.shape.token_bytes

    def write(
        self, runs: list[Run], kv: torch.Tensor, cell: Cell | None = None, *, wait: bool = True
    ) -> None:
        """Fill a holding, or a cell of it, with kv [layers, 2, G, tokens, D] of any device. Any
        thread may, while somebody holds the slots. wait: see KV.fill."""
        part, at = _part(cell), 0
        for slot, tokens in runs:
            some = kv[:, :, :, at : at + tokens] if len(runs) > 1 else kv
            self.kv.fill(slice(slot, slot + tokens), some, *part, wait=wait)
            at += tokens

    def read(self, runs: list[Run], cell: Cell | None = None) -> torch.Tensor:
        """What `write` would be given for them, on the CPU; a copy. Any thread, as above."""
        part = _part(cell)
        return torch.cat([self.kv.select(slice(s, s + n), *part) for s, n in runs], dim=3).cpu()

    def slots(self, runs: list[Run], cell: Cell) -> Slots | None:
        """The same slots as bytes to be written, in the order of what `write` would be given; None
        where they do not hold just that. Any thread, as above."""
        return None if self._bytes is None else self._bytes.slots(runs, cell)

    def keep(self, runs: list[Run], pages: Pages, ids: Int32Array, first: int) -> None:
        """Fill a holding with what lies in pages of a sequence, from its token `first` on."""
        self.write(runs, pages.read(ids)[:, :, :, first : first + sum(n for _, n in runs)])

    @property
    def free_tokens(self) -> int:
        """Tokens in extents that nobody holds."""
        return int((self.refs == 0).sum()) * self.extent_tokens

    def alloc(self, tokens: int, after: int = 0) -> list[Run] | None:
        """Room for `tokens`, as few runs as possible; None if there is not enough. after: the slot
        behind the tokens that these continue (0: they continue nothing)."""
        unit = self.extent_tokens
        last = (after - 1) // unit  # the extent that holds the token before
        room = self._room_behind(tokens, after)
        extents = self._pick(self.need(tokens, after), prefer=last + 1 if after else 0)
        if extents is None:
            return None
        runs: list[Run] = []
        if room:
            self.refs[last] += 1
            self.fill[last] += room
            runs.append((after, room))
        left = tokens - room
        for extent in extents:
            taken = min(unit, left)
            self.refs[extent], self.fill[extent] = 1, taken
            runs.append((extent * unit, taken))
            left -= taken
        return joined(runs)

    def need(self, tokens: int, after: int = 0) -> int:
        """How many free extents `alloc` takes."""
        return -(-(tokens - self._room_behind(tokens, after)) // self.extent_tokens)

    def spare(self, holdings: Iterable[list[Run]]) -> int:
        """How many extents would be free if these holdings were the only ones."""
        unit, taken = self.extent_tokens, np.zeros(len(self.refs), bool)
        for runs in holdings:
            for slot, tokens in runs:
                taken[slot // unit : (slot + tokens - 1) // unit + 1] = True
        return int((~taken).sum())

    def cut(self, runs: list[Run], tokens: int) -> tuple[list[Run], list[Run]]:
        """Divide a holding after `tokens` into two holdings. An extent that both touch is counted
        twice from now on."""
        head, tail = clip(runs, 0, tokens), clip(runs, tokens, sum(n for _, n in runs))
        if head and tail:
            last = sum(head[-1]) - 1
            if last // self.extent_tokens == tail[0][0] // self.extent_tokens:
                self.refs[last // self.extent_tokens] += 1
        return head, tail

    def free(self, runs: list[Run]) -> None:
        """Give a holding back; extents that nobody else holds become free."""
        unit = self.extent_tokens
        for slot, tokens in runs:
            for extent in range(slot // unit, (slot + tokens - 1) // unit + 1):
                lo, hi = max(slot - extent * unit, 0), min(slot + tokens - extent * unit, unit)
                self.refs[extent] -= 1
                if self.refs[extent] == 0:
                    self.fill[extent] = 0
                elif self.fill[extent] == hi:
                    self.fill[extent] = lo

    def check(self, holdings: Iterable[list[Run]]) -> None:
        """Verify that the holdings are disjoint and account for every count. Slow; for tests and
        idle moments. Raises AssertionError."""
        owned = np.zeros(self.capacity, np.int32)
        refs, top = np.zeros_like(self.refs), np.zeros_like(self.fill)
        unit = self.extent_tokens
        for runs in holdings:
            for slot, tokens in runs:
                owned[slot : slot + tokens] += 1
                for extent in range(slot // unit, (slot + tokens - 1) // unit + 1):
                    refs[extent] += 1
                    top[extent] = max(top[extent], min(slot + tokens - extent * unit, unit))
        assert owned.max(initial=0) <= 1, "two segments hold one slot"
        assert np.array_equal(refs, self.refs), "extent counts differ from the holdings"
        assert (top <= self.fill).all(), "a held slot lies above the fill mark"
        assert (self.fill[self.refs == 0] == 0).all(), "a free extent has a fill mark"

    def _room_behind(self, tokens: int, after: int) -> int:
        """How many of `tokens` fit into the rest of the extent that ends before slot `after`."""
        last = (after - 1) // self.extent_tokens
        end = after - last * self.extent_tokens
        return min(self.extent_tokens - end, tokens) if after and self.fill[last] == end else 0

    def _pick(self, need: int, prefer: int) -> list[int] | None:
        """Free extents: starting at `prefer` if that row is long enough, else the tightest row
        that is, else the longest rows."""
        free = self.refs == 0
        if need == 0:
            return []
        if int(free.sum()) < need:
            return None
        if prefer + need <= len(free) and free[prefer : prefer + need].all():
            return list(range(prefer, prefer + need))
        edges = np.flatnonzero(np.diff(np.concatenate(([0], free, [0]))))
        starts, sizes = edges[::2], edges[1::2] - edges[::2]
        long = np.flatnonzero(sizes >= need)
        if len(long):
            start = int(starts[long[np.argmin(sizes[long])]])
            return list(range(start, start + need))
        picked: list[int] = []
        for row in np.argsort(-sizes, kind="stable"):
            size = min(int(sizes[row]), need - len(picked))
            picked.extend(range(int(starts[row]), int(starts[row]) + size))
        return picked


def _part(cell: Cell | None) -> tuple[slice, slice]:
    """Its layers and heads."""
    return (ALL, ALL) if cell is None else (slice(*cell[:2]), slice(*cell[2:]))


def joined(runs: Iterable[Run]) -> list[Run]:
    """The same slots with neighbours made one."""
    out: list[Run] = []
    for slot, tokens in runs:
        if out and sum(out[-1]) == slot:
            out[-1] = (out[-1][0], out[-1][1] + tokens)
        else:
            out.append((slot, tokens))
    return out


def clip(runs: Iterable[Run], lo: int, hi: int) -> list[Run]:
    """Tokens [lo, hi) of a holding."""
    return list(_clip(runs, lo, hi))


def _clip(runs: Iterable[Run], lo: int, hi: int) -> Iterator[Run]:
    at = 0
    for slot, tokens in runs:
        first, last = max(lo, at), min(hi, at + tokens)
        if first < last:
            yield slot + first - at, last - first
        at += tokens
