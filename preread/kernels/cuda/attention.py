"""Shared-prefix attention in three Triton programs (see docs/engine.md for the picture).

`attend_tiles` serves rows that are read: for a tile of packed rows, the runs of the prefix tree
they share, their own past in pages, and the new rows themselves, causally, in one online softmax
(Dao 2023, arXiv 2307.08691): nothing is merged afterwards. `attend_parts` and `attend_tail` serve
rows that decode: few rows over long keys leave most of the chip idle, so the keys are split over
programs (split-K), and the pass over the row's own pages begins with what the parts left behind.

The query heads that share a key head are folded into the row axis (Hydragen, arXiv 2402.05099):
row r of a tile is token r // FOLD and head r % FOLD of the group. Scores are in base 2 inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton

from preread.kernels.cuda.attention_programs import (
    parts_program,
    tail_program,
    tiles_program,
    write_program,
)

if TYPE_CHECKING:
    from preread.kernels.lists import Parts, Tail, Tiles

LOG2E = 1.4426950408889634


class Blocks(NamedTuple):
    """Sizes of a kernel: rows, keys, warps and stages of the load pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


def tile_blocks(head_dim: int) -> Blocks:
    """For `attend_tiles`: the fastest of 24 on an H100 (benchmarks/gpu_attention.py)."""
    if head_dim <= 64:
        return Blocks(64, 64, 4, 3)
    return Blocks(128, 64, 8, 3) if head_dim <= 128 else Blocks(64, 32, 8, 2)


def part_blocks(head_dim: int, rows: int) -> Blocks:
    """For `attend_parts` with so many folded rows to a program."""
    if head_dim > 128:
        return Blocks(min(rows, 64), 32, 8, 2)
    return (
        Blocks(rows, 128, 8, 3)
        if rows >= 128
        else Blocks(rows, 128 if head_dim <= 64 else 64, 4, 3)
    )


def tail_blocks(head_dim: int) -> Blocks:
    """For `attend_tail`: the rows are the heads of one token."""
    return Blocks(16, 32 if head_dim > 64 else 64, 4, 2)


def supports(dtype: torch.dtype, head_dim: int, fold: int) -> bool:
    """Whether these kernels take a model; others keep the stock calls."""
    return dtype in (torch.bfloat16, torch.float16) and head_dim <= 256 and fold <= 16


def attend_tiles(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
    tiles: Tiles[torch.Tensor], arena: torch.Tensor, pages: torch.Tensor, scale: float,
    blocks: Blocks,
) -> None:  # fmt: skip
    """q, out [T, H, D], k, v [T, G, D] (contiguous per token), arena [2, G, N, D], pages
    [2, G, pages, page, D]: fills the tiles' rows of `out`."""
    size, groups = q.shape[2], k.shape[1]
    tiles_program[(len(tiles.tiles), groups)](
        q, k, v, out, tiles.starts, tiles.trees, tiles.tiles, tiles.runs, tiles.table, arena, pages,
        q.stride(0), k.stride(0), v.stride(0), out.stride(0), tiles.table.stride(0),
        arena.stride(1), arena.stride(0), pages.stride(1), pages.stride(0), scale * LOG2E,
        FOLD=q.shape[1] // groups, D=size, BD=max(triton.next_power_of_2(size), 16),
        BM=blocks.rows, BN=blocks.keys, PAGE=pages.shape[3], TREE=len(tiles.trees) > 0,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def attend_parts(
    q: torch.Tensor, parts: Parts[torch.Tensor], arena: torch.Tensor,
    part: torch.Tensor, lse: torch.Tensor, scale: float, blocks: Blocks,
) -> None:  # fmt: skip
    """Each item's rows over its run, into part [P, B, H, D] and lse [P, B, H] (base 2), float32."""
    size, groups = q.shape[2], arena.shape[1]
    parts_program[(len(parts.items), groups)](
        q, parts.items, arena, part, lse, q.stride(0), arena.stride(1), arena.stride(0),
        part.shape[1], q.shape[1], scale * LOG2E,
        FOLD=q.shape[1] // groups, D=size, BD=max(triton.next_power_of_2(size), 16),
        BM=blocks.rows, BN=blocks.keys, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def attend_tail(
    q: torch.Tensor, out: torch.Tensor, tail: Tail[torch.Tensor], pages: torch.Tensor,
    part: torch.Tensor, lse: torch.Tensor, scale: float, blocks: Blocks,
) -> None:  # fmt: skip
    """The decoding rows over their own pages, beginning with the parts: their rows of `out`."""
    size, groups = q.shape[2], pages.shape[1]
    tail_program[(len(tail.rows), groups)](
        q, out, tail.rows, tail.counts, tail.lengths, tail.table, pages, part, lse,
        q.stride(0), out.stride(0), tail.table.stride(0), pages.stride(1), pages.stride(0),
        part.shape[1], q.shape[1], scale * LOG2E,
        FOLD=q.shape[1] // groups, D=size, BD=max(triton.next_power_of_2(size), 16),
        BM=blocks.rows, BN=blocks.keys, PAGE=pages.shape[3],
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def write_kv(
    k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor
) -> None:
    """Row rows[i] of k, v [T, G, D] becomes token slots[i] of kv [2, G, N, D]; below 0: of none."""
    groups, size = k.shape[1:]
    if len(slots):
        write_program[(len(slots),)](
            k, v, rows, slots, kv, k.stride(0), v.stride(0), kv.stride(1), kv.stride(0), groups,
            D=size, BD=triton.next_power_of_2(size), HEADS=triton.next_power_of_2(groups),
            num_warps=4,
        )  # fmt: skip
