"""The Triton programs that write keys and values to their places, in the model's type or in eight
bits (kernels/kv.py), and that round them as they would be read back."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def write_program(
    k_ptr, v_ptr, rows_ptr, slots_ptr, kv_ptr, k_stride, v_stride, head_stride, side, heads,
    D: tl.constexpr, BD: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    slot = tl.load(slots_ptr + i).to(tl.int64)
    if slot >= 0:
        row = tl.load(rows_ptr + i).to(tl.int64)
        head = tl.arange(0, HEADS)[:, None]
        d = tl.arange(0, BD)[None, :]
        there = (head < heads) & (d < D)
        at = head * D + d
        target = kv_ptr + head.to(tl.int64) * head_stride + slot * D + d
        tl.store(target, tl.load(k_ptr + row * k_stride + at, mask=there), mask=there)
        tl.store(target + side, tl.load(v_ptr + row * v_stride + at, mask=there), mask=there)


@triton.jit
def _quantised(x, CODE: tl.constexpr, LEAST: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr):
    """x [HEADS, D] -> codes, float32 scales [HEADS]; see kernels/kv.py."""
    wide = x.to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(wide), 1), LEAST)
    bits = ((largest.to(tl.int32, bitcast=True) + UP) & 0x7F800000) - DOWN
    steps = wide * ((254 << 23) - bits).to(tl.float32, bitcast=True)[:, None]  # 1 / scale, exact
    bad = tl.sum(tl.where(wide * 0 != 0, 1, 0), 1) > 0
    if CODE == tl.int8:
        steps = (steps + 12582912.0) - 12582912.0  # 1.5 * 2^23: to the nearest, ties to even
    codes = tl.where(bad[:, None], 0.0, steps).to(CODE)
    return codes, tl.where(bad, float("nan"), bits.to(tl.float32, bitcast=True))


@triton.jit
def write_codes_program(
    k_ptr, v_ptr, rows_ptr, slots_ptr, kv_ptr, scales_ptr, k_stride, v_stride, head_stride, side,
    heads, D: tl.constexpr, BD: tl.constexpr, HEADS: tl.constexpr, CODE: tl.constexpr,
    LEAST: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    slot = tl.load(slots_ptr + i).to(tl.int64)
    if slot >= 0:
        row = tl.load(rows_ptr + i).to(tl.int64)
        head, d = tl.arange(0, HEADS), tl.arange(0, BD)[None, :]
        there = (head < heads)[:, None] & (d < D)
        at = head[:, None] * D + d
        first = head.to(tl.int64) * head_stride
        target, scales = kv_ptr + first[:, None] + slot * D + d, scales_ptr + first // D + slot
        k = tl.load(k_ptr + row * k_stride + at, mask=there, other=0.0)
        v = tl.load(v_ptr + row * v_stride + at, mask=there, other=0.0)
        codes, scale = _quantised(k, CODE, LEAST, UP, DOWN)
        tl.store(target, codes, mask=there)
        tl.store(scales, scale, mask=head < heads)
        codes, scale = _quantised(v, CODE, LEAST, UP, DOWN)
        tl.store(target + side, codes, mask=there)
        tl.store(scales + side // D, scale, mask=head < heads)


@triton.jit
def rounded_program(
    x_ptr, out_ptr, stride, heads, D: tl.constexpr, BD: tl.constexpr, HEADS: tl.constexpr,
    CODE: tl.constexpr, LEAST: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, d = tl.arange(0, HEADS)[:, None], tl.arange(0, BD)[None, :]
    there = (head < heads) & (d < D)
    at = head * D + d
    x = tl.load(x_ptr + row * stride + at, mask=there, other=0.0)
    codes, scale = _quantised(x, CODE, LEAST, UP, DOWN)
    wide = codes.to(tl.float32) * scale[:, None]
    tl.store(out_ptr + row * heads * D + at, wide.to(x.dtype), mask=there)
