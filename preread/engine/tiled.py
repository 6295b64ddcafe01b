"""The attention of one step by the CUDA kernels: the fast form of `attend.StepAttention`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from preread.engine.arena import Arena
from preread.engine.pages import Pages
from preread.engine.sampler import resolved
from preread.engine.staging import staged
from preread.engine.step import Step
from preread.engine.tiles import parts_of, tail_of, tiles_of, trees_of
from preread.kernels.cuda import attention as kernels
from preread.kernels.lists import Parts, Tail, Tiles
from preread.models.interface import Attend, Decoder

if TYPE_CHECKING:
    from preread.engine.layers import Layers
    from preread.types import Int32Array

MOST_PARTS = 16  # of one decoding row: what a prefix is split into at most
WAVES = 1  # programs of the pass over shared keys for each multiprocessor


class Writes(NamedTuple):
    """Row rows[i] of the step becomes token slots[i]."""

    rows: Int32Array
    slots: Int32Array


class Lists(NamedTuple):
    """A step for the kernels, on the host. `rows`: folded rows of a program of `parts`."""

    tokens: Int32Array
    positions: Int32Array
    to_pages: Writes
    to_arena: Writes
    tiles: Tiles[Int32Array] | None
    tail: Tail[Int32Array] | None
    parts: Parts[Int32Array] | None
    rows: int

    @property
    def groups(self) -> list[tuple[Int32Array, ...]]:
        """All arrays, in the order in which they lie on the device."""
        return [
            (self.tokens, self.positions), self.to_pages, self.to_arena,
            self.tiles or (), self.tail or (), self.parts or (),
        ]  # fmt: skip

    @property
    def decodes(self) -> bool:
        """Whether all rows decode."""
        return self.tiles is None and self.tail is not None


class Layout(NamedTuple):
    """What the lists depend on beside the step: rows of the model's heads that share a key head,
    key heads, head size, multiprocessors."""

    fold: int
    groups: int
    head_dim: int
    processors: int

    def lists(self, step: Step) -> Lists | None:
        """None when the kernels do not cover a step."""
        if step.gather is not None or (trees := trees_of(step)) is None:
            return None
        tail, parts, rows = tail_of(step), None, kernels.tile_blocks(self.head_dim).rows
        if tail is not None:
            widest = max((d.last - d.first for d in step.dense), default=1) * self.fold
            rows = next((n for n in (16, 32, 64) if n >= widest), rows)
            programs = WAVES * self.processors // self.groups
            if (parts := parts_of(step, tail, rows // self.fold, programs, MOST_PARTS)) is None:
                return None
        return Lists(
            step.tokens.astype(np.int32), step.positions.astype(np.int32),
            Writes(step.write_rows.astype(np.int32), step.write_slots.astype(np.int32)),
            _to_arena(step),
            tiles_of(step, kernels.tile_blocks(self.head_dim).rows // self.fold, trees),
            tail, parts, rows,
        )  # fmt: skip


def _to_arena(step: Step) -> Writes:
    rows = [
        np.arange(r, r + len(c.tokens)) for r, c in zip(step.chunk_rows, step.chunks, strict=True)
    ]
    slots = [np.arange(s, s + n) for c in step.chunks for s, n in c.runs]
    none = np.empty(0, np.int32)
    return Writes(*(np.concatenate((none, *x)).astype(np.int32) for x in (rows, slots)))


class Device(NamedTuple):
    """`Lists` on the device."""

    tokens: torch.Tensor
    positions: torch.Tensor
    to_pages: tuple[torch.Tensor, torch.Tensor]
    to_arena: tuple[torch.Tensor, torch.Tensor]
    tiles: Tiles[torch.Tensor] | None
    tail: Tail[torch.Tensor] | None
    parts: Parts[torch.Tensor] | None
    rows: int
    most_parts: int

    @staticmethod
    def of(lists: Lists, device: torch.device, into: torch.Tensor | None = None) -> Device:
        """into: see `staged`."""
        flat = iter(staged([a for group in lists.groups for a in group], device, into))
        base, pages, arena, tiles, tail, parts = ([next(flat) for _ in g] for g in lists.groups)
        most = 0 if lists.tail is None else int(lists.tail.counts.max(initial=0))
        return Device(
            base[0], base[1], (pages[0], pages[1]), (arena[0], arena[1]),
            Tiles(*tiles) if tiles else None,
            Tail(*tail) if tail else None,
            Parts(*parts) if parts else None,
            lists.rows, most,
        )  # fmt: skip


class TiledAttention:
    """Called once per layer. Writes the new KV to its place, then attends."""

    def __init__(self, step: Device, arena: Arena, pages: Pages, heads: int) -> None:
        shape = arena.shape
        self._step, self._precision = step, shape.precision
        self._arena, self._pages = arena.kv, pages.kv
        self._scale = shape.head_dim**-0.5
        self._tiles = kernels.tile_blocks(shape.head_dim)
        self._parts = kernels.part_blocks(shape.head_dim, step.rows)
        self._tail = kernels.tail_blocks(shape.head_dim)
        if step.tail is not None:
            size = (max(step.most_parts, 1), len(step.tail.rows), heads, shape.head_dim)
            self._part = torch.empty(size, dtype=torch.float32, device=shape.device)
            self._lse = self._part.new_empty(size[:3])

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        step = self._step
        arena, pages = self._arena.tensors(layer), self._pages.tensors(layer)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        kernels.write_kv(k, v, *step.to_pages, pages, self._precision)
        kernels.write_kv(k, v, *step.to_arena, arena, self._precision)
        if step.tiles is not None:
            # A row sees the others of its step as it will see them later.
            k, v = kernels.rounded(k, self._precision), kernels.rounded(v, self._precision)
            kernels.attend_tiles(q, k, v, out, step.tiles, arena, pages, self._scale, self._tiles)
        if step.tail is not None and step.parts is not None:
            part, lse = self._part, self._lse
            if len(step.parts.items):
                kernels.attend_parts(q, step.parts, arena, part, lse, self._scale, self._parts)
            kernels.attend_tail(q, out, step.tail, pages, part, lse, self._scale, self._tail)
        return out


def forward(
    decoder: Decoder, step: Device, arena: Arena, pages: Pages, last: torch.Tensor,
    layers: Layers | None = None,
) -> torch.Tensor:  # fmt: skip
    """Hidden rows [T, E] of a step. last: see `Sampler`; layers: see `Step`."""
    attention: Attend = TiledAttention(step, arena, pages, decoder.heads)
    if layers is not None:
        attention = layers.before(attention)
    return decoder.hidden(resolved(step.tokens, last), step.positions, attention)
