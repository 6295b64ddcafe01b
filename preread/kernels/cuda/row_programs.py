"""The Triton programs behind `elementwise` and `rows`: one or a few rows each."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_rms_norm_program(
    x_ptr, delta_ptr, weight_ptr, out_ptr, size, eps, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * size
    at = tl.arange(0, BLOCK)
    seen = at < size
    x = tl.load(x_ptr + row + at, mask=seen, other=0.0)
    if ADD:
        delta = tl.load(delta_ptr + row + at, mask=seen, other=0.0)
        x = (x.to(tl.float32) + delta.to(tl.float32)).to(x.dtype)
        tl.store(x_ptr + row + at, x, mask=seen)
    wide = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / size + eps)
    normed = (wide * scale).to(x.dtype).to(tl.float32)
    weight = tl.load(weight_ptr + at, mask=seen, other=0.0).to(tl.float32)
    tl.store(out_ptr + row + at, (normed * weight).to(x.dtype), mask=seen)


@triton.jit
def swiglu_program(in_ptr, out_ptr, inner, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seen = at < inner
    gate = tl.load(in_ptr + row * 2 * inner + at, mask=seen, other=0.0)
    up = tl.load(in_ptr + row * 2 * inner + inner + at, mask=seen, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(out_ptr + row * inner + at, (silu * up.to(tl.float32)).to(gate.dtype), mask=seen)


@triton.jit
def rotate_program(
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    stride,
    count,
    eps,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    HEADS: tl.constexpr,
    NORM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    seen = (head < count) & (lane < HALF)
    at = head * 2 * HALF + lane
    x_ptr += token * stride
    a = tl.load(x_ptr + at, mask=seen, other=0.0)
    b = tl.load(x_ptr + at + HALF, mask=seen, other=0.0)
    kind = a.dtype
    a, b = a.to(tl.float32), b.to(tl.float32)
    if NORM:
        mean = (tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF)
        scale = (1.0 / tl.sqrt(mean + eps))[:, None]
        wa = tl.load(weight_ptr + at, mask=seen, other=0.0).to(tl.float32)
        wb = tl.load(weight_ptr + at + HALF, mask=seen, other=0.0).to(tl.float32)
        a = ((a * scale).to(kind).to(tl.float32) * wa).to(kind).to(tl.float32)
        b = ((b * scale).to(kind).to(tl.float32) * wb).to(kind).to(tl.float32)
    angle = token * HALF + lane
    c = tl.load(cos_ptr + angle, mask=lane < HALF, other=0.0).to(tl.float32)
    s = tl.load(sin_ptr + angle, mask=lane < HALF, other=0.0).to(tl.float32)
    ac, bs = (a * c).to(kind).to(tl.float32), (b * s).to(kind).to(tl.float32)
    bc, as_ = (b * c).to(kind).to(tl.float32), (a * s).to(kind).to(tl.float32)
    tl.store(x_ptr + at, (ac - bs).to(kind), mask=seen)
    tl.store(x_ptr + at + HALF, (bc + as_).to(kind), mask=seen)


@triton.jit
def row_stats_program(x_ptr, best_ptr, top_ptr, lse_ptr, stride, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, size, BLOCK):
        x = tl.load(x_ptr + row * stride + begin + at, mask=begin + at < size, other=float("-inf"))
        x = x.to(tl.float32)
        more = x > top
        new = tl.where(more, x, top)
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(top - base) + tl.exp(x - base)
        where = tl.where(more, begin + at, where)
        top = new
    peak = tl.max(top, 0)
    base = tl.where(peak == float("-inf"), 0.0, peak)
    lse = tl.log(tl.sum(total * tl.exp(top - base), 0)) + base
    first = tl.min(tl.where(top == peak, where, size), 0)
    tl.store(best_ptr + row, first.to(tl.int64))
    # A maximum does not see NaN, the sum does.
    tl.store(top_ptr + row, tl.where(lse != lse, lse, peak))
    tl.store(lse_ptr + row, lse)


@triton.jit
def quantise_program(x_ptr, q_ptr, scale_ptr, stride, size, largest, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    seen = at < size
    x = tl.load(x_ptr + row * stride + at, mask=seen, other=0.0).to(tl.float32)
    top = tl.max(tl.abs(x), 0)
    bad = tl.sum(tl.where(x != x, 1, 0), 0) > 0  # a maximum does not see NaN
    step = tl.minimum(largest / tl.maximum(top, 1.1754943508222875e-38), 3.4028234663852886e38)
    q = tl.minimum(tl.maximum(x * step, -largest), largest)
    tl.store(q_ptr + row * size + at, q.to(tl.float8e4nv), mask=seen)
    tl.store(scale_ptr + row, tl.where(bad, float("nan"), top / largest))
