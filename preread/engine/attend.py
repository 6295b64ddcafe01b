"""The attention of one step: an `Attend` over its arrays (see docs/engine.md).

Each row's keys are a few disjoint sets: stretches of the prefix tree it shares with other rows, the
past of its own sequence, and the new tokens of this step. Each set is one call that also returns
the log-sum-exp; the results are merged in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from preread.engine.arena import Arena
from preread.engine.pages import Pages
from preread.engine.step import Own, Step
from preread.kernels.attention import attend_causal, attend_decode, attend_dense
from preread.kernels.merge import fold

if TYPE_CHECKING:
    from preread.types import Int64Array

Rows = slice | torch.Tensor


class StepAttention:
    """Called once per layer. Writes the new KV to its place, then attends."""

    def __init__(self, step: Step, arena: Arena, pages: Pages) -> None:
        self._arena, self._pages = arena.kv, pages.kv
        self._scale = arena.shape.head_dim**-0.5
        self._step = step
        self._device = arena.shape.device
        self._writes = self._rows(step.write_rows)
        self._write_slots = self._index(step.write_slots)
        self._own = [self._stretches(own) for own in step.own]
        self._history = [(h, self._index(h.pages.astype(np.int64))) for h in step.history]
        self._decode: _Lookup | None = None
        if (decode := step.decode) is not None:
            self._decode = self._lookup(decode.rows, decode.table, decode.lengths)
        self._gather: _Lookup | None = None
        if (gather := step.gather) is not None:
            self._gather = self._lookup(gather.rows, gather.slots, gather.lengths)

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        self._write(layer, k, v)
        if self._own:  # a row sees the others of its step as it will see them later
            k, v = self._arena.rounded(k), self._arena.rounded(v)
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.empty(q.shape, dtype=wide, device=q.device)
        lse = torch.empty(q.shape[:2], dtype=wide, device=q.device)
        for own in self._own:
            new = [x[own.rows].view(*own.shape, *x.shape[1:]) for x in (q, k, v)]
            got, got_lse = attend_causal(new[0], new[1], new[2], self._scale, own.mask)
            flat, flat_lse = got.flatten(0, 1), got_lse.flatten(0, 1)
            if own.valid is None:
                _put(out, lse, own.rows, flat, flat_lse)
            else:
                _put(out, lse, own.real_rows, flat[own.valid], flat_lse[own.valid])
        if (decode := self._decode) is not None:
            keys, values = self._pages.read(layer, decode.table).transpose(1, 2).flatten(3, 4)
            part = attend_decode(q[decode.rows], keys, values, decode.lengths, self._scale)
            _put(out, lse, decode.rows, *part)
        self._fold_past(layer, q, out, lse)
        return out.to(q.dtype)

    def _fold_past(self, layer: int, q: torch.Tensor, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Merge what came before this step: shared stretches and multi-row histories."""
        for dense in self._step.dense:
            rows = slice(dense.first, dense.last)
            for slot, n in dense.runs:
                keys, values = self._arena.read(layer, slice(slot, slot + n))
                fold(out[rows], lse[rows], *attend_dense(q[rows], keys, values, self._scale))
        for past, pages in self._history:
            rows = slice(past.first, past.last)
            keys, values = self._pages.read(layer, pages).flatten(2, 3)[:, :, : past.length]
            fold(out[rows], lse[rows], *attend_dense(q[rows], keys, values, self._scale))
        if (gather := self._gather) is not None:
            keys, values = self._arena.read(layer, gather.table).transpose(1, 2)
            part = attend_decode(q[gather.rows], keys, values, gather.lengths, self._scale)
            some, some_lse = out[gather.rows], lse[gather.rows]
            fold(some, some_lse, *part)
            _put(out, lse, gather.rows, some, some_lse)

    def _write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        if len(self._write_slots):
            self._pages.write(layer, self._write_slots, k[self._writes], v[self._writes])
        for row, chunk in zip(self._step.chunk_rows, self._step.chunks, strict=True):
            for slot, n in chunk.runs:
                end = row + n
                self._arena.write(layer, slice(slot, slot + n), k[row:end], v[row:end])
                row = end

    def _stretches(self, own: Own) -> _Stretches:
        rows, whole = self._rows(own.rows.ravel()), bool(own.valid.all())
        valid = None if whole else self._index(np.flatnonzero(own.valid))
        real_rows = rows if whole else self._rows(own.rows[own.valid])
        mask = None if own.mask is None else torch.from_numpy(own.mask).to(self._device)
        shape = (own.rows.shape[0], own.rows.shape[1])
        return _Stretches(rows, shape, valid, real_rows, mask)

    def _lookup(self, rows: Int64Array, table: Int64Array, lengths: Int64Array) -> _Lookup:
        return _Lookup(self._rows(rows), self._index(table), self._index(lengths))

    def _rows(self, index: Int64Array) -> Rows:
        """A slice where the rows lie side by side: a view instead of a copy."""
        if len(index) and np.array_equal(index, np.arange(index[0], index[0] + len(index))):
            return slice(int(index[0]), int(index[0]) + len(index))
        return self._index(index)

    def _index(self, index: Int64Array) -> torch.Tensor:
        return torch.from_numpy(index).to(self._device)


class _Stretches(NamedTuple):
    """rows: all rows of a bucket, [B * L]; valid: which of them are not padding (None: all), and
    real_rows, the rows those are."""

    rows: Rows
    shape: tuple[int, int]
    valid: torch.Tensor | None
    real_rows: Rows
    mask: torch.Tensor | None


class _Lookup(NamedTuple):
    """One row per sequence and where its keys lie."""

    rows: Rows
    table: torch.Tensor
    lengths: torch.Tensor


def _put(
    out: torch.Tensor, lse: torch.Tensor, rows: Rows, part: torch.Tensor, part_lse: torch.Tensor
) -> None:
    """part, of any dtype, becomes `rows` of the wide result."""
    out[rows] = part if isinstance(rows, slice) else part.to(out.dtype)
    lse[rows] = part_lse
