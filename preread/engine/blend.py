"""Approximate KV of a prefix: keys and values of parts that were read alone, moved to new places,
and some tokens computed again with everything before them in view.

Keys are turned from their old positions to the new ones, which is exact; that the parts have not
seen one another is what makes it approximate. Computing chosen tokens again, all layers, in order,
gives them what they would have seen. Which ones: the first of every stretch, which otherwise draw
attention as the beginning of a text does (EPIC's LegoLink, arXiv 2410.15332), or those whose keys
and values at the second layer, where reading alone first shows, are furthest from what the whole
prefix in view makes of them (CacheBlend, arXiv 2405.16444). With a share of 1 all are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from preread.engine.arena import Arena, Run, clip
from preread.engine.stretches import Stretch
from preread.kernels.attention import attend_at
from preread.kernels.rope import moved
from preread.models.decoder import PackedDecoder
from preread.models.interface import Attend

if TYPE_CHECKING:
    from preread.blends import BlendBy
    from preread.types import Float32Array, Int32Array, Int64Array

MOVED = 1024  # tokens moved at once
CELLS = 1 << 24  # most rows x keys of one pass
ROWS = 256  # that attend at once
DEVIATES = 1  # the first layer whose keys and values depend on other tokens than their own


class _Enough(Exception):
    """Of a forward pass: what would follow is not needed."""


class Blending:
    """A prefix of tokens [T] that lie in `runs` of the arena. What moves tokens may run in any
    thread that holds the place; what computes, on the engine's alone."""

    def __init__(
        self, decoder: PackedDecoder, arena: Arena, runs: list[Run], tokens: Int32Array
    ) -> None:
        self._decoder = decoder
        self._arena = arena
        self._runs = runs
        device = decoder.device
        self._tokens = torch.from_numpy(tokens.astype(np.int64)).to(device)
        slots = [np.arange(slot, slot + n) for slot, n in runs]
        self._slots = torch.from_numpy(np.concatenate(slots)).to(device)

    def pieces(self, at: Int64Array, most: int) -> list[Int64Array]:
        """Places for one pass after the other, in order."""
        size = max(1, min(most, CELLS // len(self._slots)))
        return [at[lo : lo + size] for lo in range(0, len(at), size)]

    @torch.inference_mode()
    def put(self, at: int, kv: torch.Tensor, start: int) -> None:
        """kv [layers, 2, G, n, D] of tokens that were read at positions [start, start + n), on any
        device, becomes the KV of tokens [at, at + n)."""
        device = self._decoder.device
        for lo in range(0, kv.shape[3], MOVED):
            piece = kv[:, :, :, lo : lo + MOVED].to(device)
            layers, _, groups, n, size = piece.shape
            places = torch.arange(n, device=device)
            old, new = (self._decoder.angles(places + first + lo) for first in (start, at))
            keys = piece[:, 0].permute(2, 0, 1, 3).reshape(n, layers * groups, size)
            keys = moved(keys, old, new).view(n, layers, groups, size).permute(1, 2, 0, 3)
            runs = clip(self._runs, at + lo, at + lo + n)
            self._arena.write(runs, torch.stack((keys, piece[:, 1]), 1))

    @torch.inference_mode()
    def recompute(self, at: Int64Array) -> None:
        """Compute tokens at these places, ascending, with all before them in view, and keep their
        KV. What lies before them is as it shall stay."""
        places, last = torch.from_numpy(at).to(self._decoder.device), self._decoder.layers - 1

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self._arena.kv.write(layer, self._slots[places], k, v)
            if layer == last:
                raise _Enough
            return self._seen(layer, q, at)

        self._pass(places, attend)

    @torch.inference_mode()
    def deviations(self, at: Int64Array) -> Float32Array:
        """For tokens at these places, ascending: the squared distance of the KV that lies there
        from what the tokens before, all of them, make of it, at the layer DEVIATES; of keys and of
        values as shares of their squares, added. The KV of layer 0, the tokens' own, is
        written."""
        places = torch.from_numpy(at).to(self._decoder.device)
        found: list[torch.Tensor] = []

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            if layer == DEVIATES:
                kept = self._arena.kv.read(layer, self._slots[places])  # [2, G, n, D]
                fresh = torch.stack((k, v)).transpose(1, 2).float()
                off = (kept.float() - fresh).square().sum((1, 3))
                found.append((off / fresh.square().sum((1, 3))).nan_to_num(0.0).sum(0))
                raise _Enough
            self._arena.kv.write(layer, self._slots[places], k, v)
            return self._seen(layer, q, at)

        self._pass(places, attend)
        deviations: Float32Array = found[0].cpu().numpy()
        return deviations

    def _pass(self, places: torch.Tensor, attend: Attend) -> None:
        device = self._decoder.device  # Triton goes by the current one
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                self._decoder.hidden(self._tokens[places], places, attend)
        except _Enough:
            return
        raise AssertionError("a pass ends when enough is known")

    def _seen(self, layer: int, q: torch.Tensor, at: Int64Array) -> torch.Tensor:
        """Attention of rows to all tokens up to their own places, which lie in the arena."""
        runs = clip(self._runs, 0, int(at[-1]) + 1)
        parts = [self._arena.kv.read(layer, slice(slot, slot + n)) for slot, n in runs]
        k, v = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
        scale, out = self._decoder.head_dim**-0.5, torch.empty_like(q)
        for lo in range(0, len(at), ROWS):  # those before see fewer keys
            rows, upto = slice(lo, lo + ROWS), int(at[lo : lo + ROWS][-1]) + 1
            places = torch.from_numpy(at[rows]).to(q.device)
            out[rows] = attend_at(q[rows], k[:, :upto], v[:, :upto], places, scale)[0]
        return out


def chosen(
    found: Sequence[Stretch], share: float, by: BlendBy, deviations: Float32Array | None
) -> Int64Array:
    """Places of the tokens to compute again, of those in the stretches. deviations: of all of them
    in their order, where the choice is by deviation."""
    none = [np.empty(0, np.int64)]
    every = np.concatenate([*none, *(np.arange(s.at, s.at + s.tokens) for s in found)])
    if by == "deviation" and deviations is not None:
        most = int(np.ceil(share * len(every)))
        return np.sort(every[np.argsort(-deviations, kind="stable")[:most]])
    firsts = (np.arange(s.at, s.at + int(np.ceil(share * s.tokens))) for s in found)
    return np.concatenate([*none, *firsts])
