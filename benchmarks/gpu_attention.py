"""Which block sizes suit the attention kernels? Milliseconds of one layer, by CUDA events.

    .venv/bin/python benchmarks/gpu_attention.py [reading] [decoding] [tails]    KV=int8: in int8

Reading: 16,384 rows in stretches of 50 over a prefix of 2,000, stock calls over the same prefix
beside it (TFLOP/s of the prefix alone). Decoding: rows over shared keys. Tails: rows over their own
pages (GB/s of the KV alone). Limits: the card's matrix and copy rates.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import triton

from preread.engine.step import Decode, Dense, Own, Score, Step
from preread.engine.tiled import Device, Lists, Writes
from preread.engine.tiles import parts_of, tail_of, tiles_of
from preread.kernels.cuda import attention as kernels
from preread.kernels.cuda.attention import Blocks
from preread.kernels.kv import FORMATS, quantise
from preread.kernels.lists import Parts, Tail, Tiles

PART, PRECISION = os.environ.get("PART", ""), os.environ.get("KV", "full")
CUDA, BF16 = torch.device("cuda"), torch.bfloat16
SHAPES = {"8b": (32, 8, 128), "0.5b": (14, 2, 64)}
NONE = np.zeros(0, np.int32)
Results = dict[str, dict[str, object]]  # case -> variant -> milliseconds and rate


def empty_step(rows: int) -> Step:
    none = np.empty(0, np.int64)
    return Step(
        np.zeros(rows, np.int64), np.zeros(rows, np.int64), none, none, none, none, none, none,
        Score(none, none, none, none),
    )  # fmt: skip


def on_device(
    tiles: Tiles | None = None, tail: Tail | None = None, parts: Parts | None = None
) -> Device:
    to = Writes(NONE, NONE)
    return Device.of(Lists(NONE, NONE, to, to, tiles, tail, parts, 0), CUDA)


def variants(*choices: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All of them, or this process's share of those to compile (PART=i/n)."""
    every = list(itertools.product(*choices))
    if not PART:
        return every
    index, of = (int(x) for x in PART.split("/"))
    return every[index::of]


def ms(work: Callable[[], object]) -> float:
    """nan: it does not run with these sizes."""
    try:
        if PART:
            work()
            torch.cuda.synchronize()
            return 1.0
        return float(triton.testing.do_bench(work, warmup=5, rep=25, return_mode="median"))
    except (RuntimeError, triton.runtime.OutOfResources):
        return float("nan")


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=CUDA, dtype=BF16)


def kept(kv: torch.Tensor) -> kernels.LayerKV:
    """KV [2, G, *tokens, D] as the programs take it."""
    if PRECISION == "full":
        return kv, kv
    codes, scales = quantise(kv, PRECISION)
    return codes.view(FORMATS[PRECISION].code), scales


def reading(out: Results) -> None:
    for name, (heads, groups, size) in SHAPES.items():
        rows, own, prefix, fold = 16350, 50, 2000, heads // groups
        q, (k, v), arena = (
            rand(rows, heads, size),
            rand(2, rows, groups, size),
            rand(2, groups, 4096, size),
        )
        got, pages, flops = (
            torch.empty_like(q),
            rand(2, groups, 4, 16, size),
            4 * rows * prefix * heads * size,
        )
        step = empty_step(rows)
        stretches = np.arange(rows).reshape(-1, own)
        step.own.append(Own(stretches, np.ones(stretches.shape, bool), None))
        step.dense.append(Dense(0, rows, ((0, prefix),)))
        made = out.setdefault(f"{name} reading", {})
        for sizes in variants((64, 128), (32, 64, 128), (4, 8), (2, 3)):
            tiles = on_device(tiles_of(step, sizes[0] // fold, np.zeros((0, 3), np.int32))).tiles
            call = partial(
                kernels.attend_tiles,
                q,
                k,
                v,
                got,
                tiles,
                kept(arena),
                kept(pages),
                0.1,
                Blocks(*sizes),
            )
            made[str(sizes)] = t = round(ms(call), 4)
            made[str(sizes)] = (t, round(flops / t / 1e9))
        folded = q.view(rows, groups, fold, size).permute(1, 0, 2, 3)
        stock(
            out.setdefault(f"{name} reading, stock", {}), folded, arena[:, None, :, :prefix], flops
        )


def stock(made: dict[str, object], folded: torch.Tensor, kv: torch.Tensor, flops: float) -> None:
    """folded [G, T, fold, D]; kv [2, 1, G, P, D]. The copy that folds is a call of its own."""
    q, aten = folded.flatten(1, 2)[None], torch.ops.aten
    calls = {
        "flash": lambda: aten._scaled_dot_product_flash_attention(q, *kv, 0.0, False, scale=0.1),
        "cudnn": lambda: aten._scaled_dot_product_cudnn_attention(
            q, *kv, None, True, 0.0, False, scale=0.1
        ),
        "copy": lambda: folded.flatten(1, 2),
    }
    for kind, call in calls.items():
        t = ms(call)
        made[kind] = (round(t, 4), round(flops / t / 1e9))


def decoding(out: Results) -> None:
    for name, count, prefix in (("8b", 256, 8192), ("8b", 1024, 2000), ("0.5b", 1024, 2000)):
        heads, groups, size = SHAPES[name]
        q, arena, fold = rand(count, heads, size), rand(2, groups, 16384, size), heads // groups
        step = empty_step(count)
        step.dense.append(Dense(0, count, ((0, prefix),)))
        step.decode = Decode(np.arange(count), np.zeros((count, 1), np.int64), np.full(count, 1))
        made = out.setdefault(f"{name} decoding {count} x {prefix}", {})
        for *sizes, waves in variants((64, 128), (64, 128), (4, 8), (3,), (1, 2)):
            tail = tail_of(step)
            assert tail is not None
            parts = parts_of(step, tail, sizes[0] // fold, waves * 132 // groups, 16)
            there = on_device(None, tail, parts)
            part = torch.empty(there.most_parts, count, heads, size, device=CUDA)
            call = partial(
                kernels.attend_parts,
                q,
                there.parts,
                kept(arena),
                part,
                part[..., 0].clone(),
                0.1,
                Blocks(*sizes),
            )
            t = ms(call)
            made[f"{sizes} waves {waves}"] = (
                round(t, 4),
                round(4 * count * prefix * heads * size / t / 1e9),
            )


def tails(out: Results) -> None:
    for name, count, own in (
        ("8b", 256, 70),
        ("8b", 1024, 70),
        ("8b", 350, 576),
        ("0.5b", 1024, 70),
    ):
        heads, groups, size = SHAPES[name]
        width = -(-own // 16)
        q, pages = rand(count, heads, size), rand(2, groups, count * width, 16, size)
        got, step = torch.empty_like(q), empty_step(count)
        table = np.random.default_rng(0).permutation(count * width).reshape(count, width)
        step.decode = Decode(np.arange(count), table, np.full(count, own))
        part, lse = (
            torch.randn(1, count, heads, size, device=CUDA),
            torch.randn(1, count, heads, device=CUDA),
        )
        tail = tail_of(step)
        assert tail is not None
        tail.counts[:] = 1
        there = on_device(None, tail).tail
        made = out.setdefault(f"{name} tails {count} x {own}", {})
        for sizes in variants((16,), (16, 32, 64, 128), (1, 2, 4), (1, 2, 3)):
            call = partial(
                kernels.attend_tail, q, got, there, kept(pages), part, lse, 0.1, Blocks(*sizes)
            )
            t = ms(call)
            nbytes = 2 * count * own * groups * (2 * size if PRECISION == "full" else size + 4)
            made[str(sizes)] = (round(t, 4), round(nbytes / t / 1e6))


def main() -> None:
    out: Results = {}
    every = {"reading": reading, "decoding": decoding, "tails": tails}
    for name in sys.argv[1:] or every:
        every[name](out)
    if PART:
        return
    for case, made in out.items():
        ranked = sorted(
            made.items(), key=lambda item: item[1][0] if item[1][0] == item[1][0] else 1e9
        )  # type: ignore[index]
        print(case, *(f"\n   {text}: {value}" for text, value in ranked[:6]), flush=True)
    print(
        json.dumps(
            {
                "benchmark": "gpu_attention",
                "kv": PRECISION,
                "machine": torch.cuda.get_device_name(),
                "cases": out,
            }
        )
    )


if __name__ == "__main__":
    main()
