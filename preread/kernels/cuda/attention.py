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

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl

from preread.kernels.cuda.attention_programs import parts_program, tail_program, tiles_program
from preread.kernels.cuda.kv_programs import rounded_program, write_codes_program, write_program
from preread.kernels.kv import grid

if TYPE_CHECKING:
    from preread.kernels.lists import Parts, Tail, Tiles

LOG2E = 1.4426950408889634
# Of one layer: values [2, G, *tokens, D], or codes of that shape and type with their scales
# [2, G, *tokens]; without any, the values again.
LayerKV = tuple[torch.Tensor, torch.Tensor]


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
    tiles: Tiles[torch.Tensor], arena: LayerKV, pages: LayerKV, scale: float, blocks: Blocks,
) -> None:  # fmt: skip
    """q, out [T, H, D], k, v [T, G, D] (contiguous per token), tokens of arena [N] and pages
    [pages, page]: fills the tiles' rows of `out`."""
    size, groups, (runs, _), (paged, _) = q.shape[2], k.shape[1], arena, pages
    tiles_program[(len(tiles.tiles), groups)](
        q, k, v, out, tiles.starts, tiles.trees, tiles.tiles, tiles.runs, tiles.table,
        *arena, *pages,
        q.stride(0), k.stride(0), v.stride(0), out.stride(0), tiles.table.stride(0),
        runs.stride(1), runs.stride(0), paged.stride(1), paged.stride(0), scale * LOG2E,
        FOLD=q.shape[1] // groups, D=size, BD=max(triton.next_power_of_2(size), 16),
        BM=blocks.rows, BN=blocks.keys, PAGE=paged.shape[3], TREE=len(tiles.trees) > 0,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def attend_parts(
    q: torch.Tensor, parts: Parts[torch.Tensor], arena: LayerKV,
    part: torch.Tensor, lse: torch.Tensor, scale: float, blocks: Blocks,
) -> None:  # fmt: skip
    """Each item's rows over its run, into part [P, B, H, D] and lse [P, B, H] (base 2), float32."""
    size, groups = q.shape[2], arena[0].shape[1]
    parts_program[(len(parts.items), groups)](
        q, parts.items, *arena, part, lse, q.stride(0), arena[0].stride(1), arena[0].stride(0),
        part.shape[1], q.shape[1], scale * LOG2E,
        FOLD=q.shape[1] // groups, D=size, BD=max(triton.next_power_of_2(size), 16),
        BM=blocks.rows, BN=blocks.keys, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def attend_tail(
    q: torch.Tensor, out: torch.Tensor, tail: Tail[torch.Tensor], pages: LayerKV,
    part: torch.Tensor, lse: torch.Tensor, scale: float, blocks: Blocks,
) -> None:  # fmt: skip
    """The decoding rows over their own pages, beginning with the parts: their rows of `out`."""
    size, groups, paged = q.shape[2], pages[0].shape[1], pages[0]
    tail_program[(len(tail.rows), groups)](
        q, out, tail.rows, tail.counts, tail.lengths, tail.table, *pages, part, lse,
        q.stride(0), out.stride(0), tail.table.stride(0), paged.stride(1), paged.stride(0),
        part.shape[1], q.shape[1], scale * LOG2E,
        FOLD=q.shape[1] // groups, D=size, BD=max(triton.next_power_of_2(size), 16),
        BM=blocks.rows, BN=blocks.keys, PAGE=paged.shape[3],
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def write_kv(
    k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, kv: LayerKV,
    precision: str,
) -> None:  # fmt: skip
    """Row rows[i] of k, v [T, G, D] becomes token slots[i] of kv, counted through all axes of its
    tokens; below 0: of none. precision: of kv, one of kernels.kv.PRECISIONS."""
    if not len(slots):
        return
    (groups, size), (values, scales) = k.shape[1:], kv
    strides = k.stride(0), v.stride(0), values.stride(1), values.stride(0)
    sizes = _sizes(groups, size)
    if precision == "full":
        write_program[(len(slots),)](
            k, v, rows, slots, values, *strides, groups, **sizes, num_warps=4
        )
    else:
        write_codes_program[(len(slots),)](
            k, v, rows, slots, values, scales, *strides, groups, **sizes, **_grid(precision),
            num_warps=4,
        )  # fmt: skip


def rounded(x: torch.Tensor, precision: str) -> torch.Tensor:
    """What is read of x [T, G, D] (contiguous per token) once it was written; "full": x itself."""
    if precision == "full" or not len(x):
        return x
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rounded_program[(len(x),)](
        x, out, x.stride(0), x.shape[1], **_sizes(x.shape[1], x.shape[2]), **_grid(precision),
        num_warps=4,
    )  # fmt: skip
    return out


def _sizes(groups: int, size: int) -> dict[str, int]:
    return {
        "D": size, "BD": triton.next_power_of_2(size), "HEADS": triton.next_power_of_2(groups),
    }  # fmt: skip


def _grid(precision: str) -> dict[str, Any]:
    least, up, down = grid(precision)
    code = tl.int8 if precision == "int8" else tl.float8e4nv
    return {"CODE": code, "LEAST": least, "UP": up, "DOWN": down}
