"""The Triton programs behind `attention`; what they compute is told there.

BM folded rows and BN keys make a block; D is the head size and BD the power of two that holds it.
`m` is the running maximum of a row's scores, `total` the sum of their powers, `acc` the weighted
sum of the values; scores are in base 2. Of KV in eight bits every token has a scale, which lies as
the tokens do; no pointer to the scales of other KV is followed. What is another number in every
step is not specialized: a program would be compiled, for seconds, when it first is 1 or a multiple
of 16.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _fold_in(acc, m, total, q, k, v, seen, scale, MASK: tl.constexpr):
    """One block of keys [BN, D] into the running softmax of q [BM, D]."""
    s = tl.dot(q, tl.trans(k)) * scale
    if MASK:
        s = tl.where(seen, s, float("-inf"))
    new = tl.maximum(m, tl.max(s, 1))
    base = tl.where(new == float("-inf"), 0.0, new) if MASK else new
    p = tl.exp2(s - base[:, None])
    alpha = tl.exp2(m - base)
    total = total * alpha + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
    return acc, new, total


@triton.jit
def _wide(x, scales, there, q):
    """Keys or values [BN, D] in q's type. scales: pointers to theirs, where there are any."""
    if x.dtype.primitive_bitwidth == 8:
        x = x.to(q.dtype) * tl.load(scales, mask=there, other=0.0).to(q.dtype)[:, None]
    return x


@triton.jit
def _over_run(
    acc, m, total, q, k_ptr, side, scales_ptr, n, scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """All of q over n keys that lie side by side; values and scales lie as the keys do."""
    v_ptr, v_scales_ptr = k_ptr + side, scales_ptr + side // D
    d = tl.arange(0, BD)[None, :]
    key = tl.arange(0, BN)[:, None]
    full = n // BN * BN
    at = key * D + d
    for begin in tl.range(0, full, BN):
        if BD == D:
            k = tl.load(k_ptr + begin * D + at)
            v = tl.load(v_ptr + begin * D + at)
        else:
            k = tl.load(k_ptr + begin * D + at, mask=d < D, other=0.0)
            v = tl.load(v_ptr + begin * D + at, mask=d < D, other=0.0)
        place = begin + tl.arange(0, BN)
        k = _wide(k, scales_ptr + place, place < n, q)
        v = _wide(v, v_scales_ptr + place, place < n, q)
        acc, m, total = _fold_in(acc, m, total, q, k, v, None, scale, False)
    if full < n:
        there = (full + key < n) & (d < D)
        k = tl.load(k_ptr + full * D + at, mask=there, other=0.0)
        v = tl.load(v_ptr + full * D + at, mask=there, other=0.0)
        place = full + tl.arange(0, BN)
        k = _wide(k, scales_ptr + place, place < n, q)
        v = _wide(v, v_scales_ptr + place, place < n, q)
        seen = full + tl.arange(0, BN)[None, :] < n
        acc, m, total = _fold_in(acc, m, total, q, k, v, seen, scale, True)
    return acc, m, total


@triton.jit
def _over_pages(
    acc, m, total, q, k_ptr, side, scales_ptr, table_ptr, n, scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """All of q over the first n keys of the pages in a row of the table."""
    v_ptr, v_scales_ptr = k_ptr + side, scales_ptr + side // D
    d = tl.arange(0, BD)[None, :]
    for begin in tl.range(0, n, BN):
        key = begin + tl.arange(0, BN)
        page = tl.load(table_ptr + key // PAGE, mask=key < n, other=0).to(tl.int64)
        place = page * PAGE + key % PAGE
        at = (place * D)[:, None] + d
        there = (key < n)[:, None] & (d < D)
        k = tl.load(k_ptr + at, mask=there, other=0.0)
        v = tl.load(v_ptr + at, mask=there, other=0.0)
        k = _wide(k, scales_ptr + place, key < n, q)
        v = _wide(v, v_scales_ptr + place, key < n, q)
        acc, m, total = _fold_in(acc, m, total, q, k, v, (key < n)[None, :], scale, True)
    return acc, m, total


@triton.jit
def _over_own(
    acc, m, total, q, k_ptr, v_ptr, starts_ptr, trees_ptr, token, valid, first, end,
    k_stride, v_stride, scale, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
    TREE: tl.constexpr,
):  # fmt: skip
    """Each row over its own stretch of the packed rows, which end at `end`."""
    d = tl.arange(0, BD)[None, :]
    start = tl.load(starts_ptr + token, mask=valid, other=first)
    if TREE:
        stem = tl.load(trees_ptr + 3 * token, mask=valid, other=0)
        low = tl.load(trees_ptr + 3 * token + 1, mask=valid, other=0).to(tl.uint32)
        high = tl.load(trees_ptr + 3 * token + 2, mask=valid, other=0).to(tl.uint32)
    for begin in tl.range(tl.min(start, 0), end, BN):
        key = begin + tl.arange(0, BN)
        there = (key < end)[:, None] & (d < D)
        row = key.to(tl.int64)[:, None]
        k = tl.load(k_ptr + row * k_stride + d, mask=there, other=0.0)
        v = tl.load(v_ptr + row * v_stride + d, mask=there, other=0.0)
        if TREE:
            node = key[None, :] - stem[:, None]
            bits = tl.where(node < 32, low[:, None], high[:, None])
            bit = (bits >> (node & 31).to(tl.uint32)) & 1
            above = (node < 0) | ((node < 64) & (bit == 1))
        else:
            above = key[None, :] <= token[:, None]
        seen = (key[None, :] >= start[:, None]) & above
        # Another sequence's value may be no number, and 0 times that is none, either.
        bad = tl.sum(tl.where(v * 0 != 0, 1, 0), 1) > 0
        v = tl.where(bad[:, None], 0.0, v).to(v.dtype)
        own_bad = tl.sum(tl.where(seen & bad[None, :], 1, 0), 1) > 0
        total = tl.where(own_bad, float("nan"), total)
        acc, m, total = _fold_in(acc, m, total, q, k, v, seen, scale, True)
    return acc, m, total


@triton.jit
def _rows_of(first, count, g, FOLD: tl.constexpr, BM: tl.constexpr):
    """Of the BM folded rows: token, query head and whether it is one."""
    r = tl.arange(0, BM)
    token = r // FOLD
    return first + token, g * FOLD + r % FOLD, token < count


@triton.jit(do_not_specialize=("table_stride",))
def tiles_program(
    q_ptr, k_ptr, v_ptr, out_ptr, starts_ptr, trees_ptr, tiles_ptr, runs_ptr, table_ptr,
    arena_ptr, arena_scales_ptr, pages_ptr, pages_scales_ptr,
    q_stride, k_stride, v_stride, out_stride, table_stride, arena_head, arena_side, pages_head,
    pages_side, scale,
    FOLD: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PAGE: tl.constexpr, TREE: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(1).to(tl.int64)  # times a pool's size it may need 64 bits
    tile_ptr = tiles_ptr + tl.program_id(0) * 6
    first, count = tl.load(tile_ptr), tl.load(tile_ptr + 1)
    run, last_run = tl.load(tile_ptr + 2), tl.load(tile_ptr + 3)
    history, past = tl.load(tile_ptr + 4), tl.load(tile_ptr + 5)
    token, head, valid = _rows_of(first, count, g, FOLD, BM)
    d = tl.arange(0, BD)[None, :]
    wide = token.to(tl.int64)[:, None]
    q = tl.load(
        q_ptr + wide * q_stride + head[:, None] * D + d, mask=valid[:, None] & (d < D), other=0.0
    )
    m = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    for i in range(run, last_run):
        slot, n = tl.load(runs_ptr + 2 * i).to(tl.int64), tl.load(runs_ptr + 2 * i + 1)
        acc, m, total = _over_run(
            acc, m, total, q, arena_ptr + g * arena_head + slot * D, arena_side,
            arena_scales_ptr + g * arena_head // D + slot, n, scale, D, BD, BN,
        )  # fmt: skip
    if past > 0:
        acc, m, total = _over_pages(
            acc, m, total, q, pages_ptr + g * pages_head, pages_side,
            pages_scales_ptr + g * pages_head // D,
            table_ptr + history.to(tl.int64) * table_stride, past, scale, D, BD, BN, PAGE,
        )  # fmt: skip
    acc, m, total = _over_own(
        acc, m, total, q, k_ptr + g * D, v_ptr + g * D, starts_ptr, trees_ptr, token, valid, first,
        first + count, k_stride, v_stride, scale, D, BD, BN, TREE,
    )  # fmt: skip
    out = acc / total[:, None]
    tl.store(
        out_ptr + wide * out_stride + head[:, None] * D + d,
        out.to(out_ptr.dtype.element_ty),
        mask=valid[:, None] & (d < D),
    )


@triton.jit(do_not_specialize=("rows",))
def parts_program(
    q_ptr, items_ptr, arena_ptr, arena_scales_ptr, part_ptr, lse_ptr,
    q_stride, arena_head, arena_side, rows, heads, scale,
    FOLD: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(1).to(tl.int64)  # times a pool's size it may need 64 bits
    item_ptr = items_ptr + tl.program_id(0) * 6
    first, count, place = tl.load(item_ptr), tl.load(item_ptr + 1), tl.load(item_ptr + 2)
    slot, n, part = tl.load(item_ptr + 3), tl.load(item_ptr + 4), tl.load(item_ptr + 5)
    if n > 0:
        token, head, valid = _rows_of(first, count, g, FOLD, BM)
        d = tl.arange(0, BD)[None, :]
        there = valid[:, None] & (d < D)
        at = token.to(tl.int64)[:, None] * q_stride + head[:, None] * D + d
        q = tl.load(q_ptr + at, mask=there, other=0.0)
        m = tl.full((BM,), float("-inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, BD), tl.float32)
        acc, m, total = _over_run(
            acc, m, total, q, arena_ptr + g * arena_head + slot.to(tl.int64) * D, arena_side,
            arena_scales_ptr + g * arena_head // D + slot, n, scale, D, BD, BN,
        )  # fmt: skip
        row = (part * rows + place).to(tl.int64) + (token - first)
        tl.store(part_ptr + (row * heads + head)[:, None] * D + d, acc / total[:, None], mask=there)
        tl.store(lse_ptr + row * heads + head, m + tl.log2(total), mask=valid)


@triton.jit(do_not_specialize=("table_stride", "rows"))
def tail_program(
    q_ptr, out_ptr, rows_ptr, counts_ptr, lengths_ptr, table_ptr, pages_ptr, pages_scales_ptr,
    part_ptr, lse_ptr,
    q_stride, out_stride, table_stride, pages_head, pages_side, rows, heads, scale,
    FOLD: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PAGE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    g = tl.program_id(1).to(tl.int64)  # times a pool's size it may need 64 bits
    token = tl.load(rows_ptr + b).to(tl.int64)
    parts, n = tl.load(counts_ptr + b), tl.load(lengths_ptr + b)
    r = tl.arange(0, BM)
    head, valid = g * FOLD + r, r < FOLD
    d = tl.arange(0, BD)[None, :]
    there = valid[:, None] & (d < D)
    q = tl.load(q_ptr + token * q_stride + head[:, None] * D + d, mask=there, other=0.0)
    m = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    for part in range(parts):
        row = (part * rows + b).to(tl.int64) * heads
        s = tl.load(lse_ptr + row + head, mask=valid, other=0.0)
        o = tl.load(part_ptr + (row + head)[:, None] * D + d, mask=there, other=0.0)
        new = tl.maximum(m, s)
        alpha, weight = tl.exp2(m - new), tl.exp2(s - new)
        acc = acc * alpha[:, None] + o * weight[:, None]
        total = total * alpha + weight
        m = new
    acc, m, total = _over_pages(
        acc, m, total, q, pages_ptr + g * pages_head, pages_side,
        pages_scales_ptr + g * pages_head // D, table_ptr + b.to(tl.int64) * table_stride, n, scale,
        D, BD, BN, PAGE,
    )  # fmt: skip
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        out_ptr + token * out_stride + head[:, None] * D + d,
        out.to(out_ptr.dtype.element_ty),
        mask=there,
    )
