"""Whether the attention programs run on this very device: sizes that suit one GPU ask for more
shared memory than another has, and a compiler may get something wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from preread.kernels.attention import attend_reference
from preread.kernels.cuda import attention as programs
from preread.kernels.kv import FORMATS, quantise, restored, rounded
from preread.kernels.lists import Parts, Tail, Tiles

log = logging.getLogger("preread.engine")
TOKENS, KEYS, FIRST = 5, 70, 3  # rows of the small case; keys they share, and where these begin


@cache
def attention_works(
    device: torch.device, dtype: torch.dtype, head_dim: int, fold: int, precision: str = "full"
) -> bool:
    """Whether the largest blocks run over KV in this precision and agree with the definition on a
    small case. Asked once per process; a refusal is logged."""
    try:
        make = torch.Generator(device=device).manual_seed(1)

        def rand(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=make, device=device).to(dtype)

        q, (k, v) = rand(TOKENS, 2 * fold, head_dim), rand(2, TOKENS, 2, head_dim)
        arena, pages = (
            Made.of(rand(2, 2, *tokens, head_dim), precision)
            for tokens in ((2 * KEYS,), (TOKENS, 16))
        )
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            pairs = _read(q, k, v, arena, pages), _decoded(q, arena, pages)
            once = programs.rounded(k, precision)
        for got, want in pairs:
            torch.testing.assert_close(got.double(), want, atol=3e-2, rtol=3e-2)
        torch.testing.assert_close(once, rounded(k, precision), atol=0, rtol=0)
    except Exception as error:  # the compiler has errors of its own kind
        why = " / ".join(line.strip() for line in str(error).splitlines() if line.strip())
        log.warning("the attention programs do not run here: %s: %s", type(error).__name__, why)
        return False
    return True


Pair = tuple[torch.Tensor, torch.Tensor]  # by the programs, by the definition


class Made(NamedTuple):
    """KV as the programs take it, and what it stands for."""

    kept: programs.LayerKV
    kv: torch.Tensor

    @staticmethod
    def of(kv: torch.Tensor, precision: str) -> Made:
        if precision == "full":
            return Made((kv, kv), kv)
        codes, scales = quantise(kv, precision)
        kept = codes.view(FORMATS[precision].code), scales
        return Made(kept, restored(codes, scales, precision, kv.dtype))


def _read(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, arena: Made, pages: Made) -> Pair:
    ints = _ints(q.device)
    tiles = Tiles(
        tiles=ints([[0, TOKENS, 0, 1, 0, 0]]), runs=ints([[FIRST, KEYS]]),
        starts=ints([0] * TOKENS),
        trees=ints([]).view(0, 3), table=ints([[0]]),
    )  # fmt: skip
    out, scale = torch.empty_like(q), q.shape[2] ** -0.5
    blocks = programs.tile_blocks(q.shape[2])
    programs.attend_tiles(q, k, v, out, tiles, arena.kept, pages.kept, scale, blocks)
    shared = arena.kv[:, :, FIRST : FIRST + KEYS]
    own = torch.stack((k, v)).transpose(1, 2)
    keys, values = torch.cat((shared, own), 2)
    seen = torch.ones(TOKENS, KEYS + TOKENS, dtype=torch.bool, device=q.device).tril(KEYS)
    return out, attend_reference(q, keys, values, scale, seen)[0]


def _decoded(q: torch.Tensor, arena: Made, pages: Made) -> Pair:
    ints, size, scale = _ints(q.device), q.shape[2], q.shape[2] ** -0.5
    rows = programs.tile_blocks(size).rows
    parts = Parts(ints([[0, TOKENS, 0, FIRST, KEYS, 0]]))
    lengths = list(range(1, TOKENS + 1))
    tail = Tail(
        ints(list(range(TOKENS))), ints([1] * TOKENS), ints(lengths),
        ints([[page] for page in range(TOKENS)]),
    )  # fmt: skip
    part = torch.empty(1, *q.shape, device=q.device)
    lse, out = part.new_empty(part.shape[:3]), torch.empty_like(q)
    blocks = programs.part_blocks(size, rows), programs.tail_blocks(size)
    programs.attend_parts(q, parts, arena.kept, part, lse, scale, blocks[0])
    programs.attend_tail(q, out, tail, pages.kept, part, lse, scale, blocks[1])
    wanted = []
    for i, length in enumerate(lengths):
        shared, own = arena.kv[:, :, FIRST : FIRST + KEYS], pages.kv[:, :, i, :length]
        keys, values = torch.cat((shared, own), 2)
        seen = torch.ones(1, KEYS + length, dtype=torch.bool, device=q.device)
        wanted.append(attend_reference(q[i : i + 1], keys, values, scale, seen)[0])
    return out, torch.cat(wanted)


def _ints(device: torch.device) -> Callable[[list[Any]], torch.Tensor]:
    return partial(torch.tensor, dtype=torch.int32, device=device)
