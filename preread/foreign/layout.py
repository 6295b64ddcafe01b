"""How the KV of a transformers model lies in chunks.

Where all layers are alike, as in the native engine: layers x (K, V) x heads x head size. Elsewhere
(keys wider than values, layers of several sizes) every head is cut into lanes of one width, the
greatest that divides all of them; the lanes of all layers, keys before values, stand in for heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from math import gcd

import torch

from preread.foreign.cache import KV, Pair
from preread.store.keys import DTYPES, Box, Geometry

Shape = tuple[int, int]  # heads, head size


@dataclass(frozen=True, slots=True)
class KVLayout:
    """shapes: keys and values of each layer that keeps any; dtype: their common one."""

    shapes: tuple[tuple[Shape, Shape], ...]
    dtype: str

    @property
    def uniform(self) -> bool:
        return len({*chain.from_iterable(self.shapes)}) == 1

    @property
    def width(self) -> int:
        return gcd(*(size for _, size in chain.from_iterable(self.shapes)))

    @property
    def lanes(self) -> int:
        """All of them, one token's."""
        return sum(heads * size // self.width for heads, size in chain.from_iterable(self.shapes))

    @property
    def bytes_per_token(self) -> int:
        return self.lanes * self.width * DTYPES[self.dtype][1]

    def geometry(self, chunk_tokens: int, chunk_bytes: int) -> Geometry:
        """Raises ConfigError when one lane does not fit a chunk."""
        layers = len(self.shapes) if self.uniform else 1
        per_side = -(-self.lanes // (2 * layers))
        return Geometry(layers, per_side, self.width, self.dtype, chunk_tokens, chunk_bytes)

    def pack(self, kv: KV, box: Box) -> torch.Tensor:
        """The box of a prefix, [layers, 2, heads or lanes, tokens, width], on the CPU."""
        tokens = slice(box.token_start, box.token_end)
        heads = slice(box.head_start, box.head_end)
        if self.uniform:
            layers = kv.layers[box.layer_start : box.layer_end]
            packed = [torch.stack((k[0, heads, tokens], v[0, heads, tokens])) for k, v in layers]
            return torch.stack(packed).cpu()
        lanes = [self._cut(x[0, :, tokens]) for x in chain.from_iterable(kv.layers)]
        if self.lanes % 2:
            lanes.append(torch.zeros_like(lanes[0][:1]))
        both = torch.cat(lanes)
        sides = both.view(1, 2, len(both) // 2, *both.shape[1:])
        return sides[:, :, heads].cpu()

    def unpack(self, staged: torch.Tensor) -> KV:
        """All boxes of some tokens, put together as [layers, 2, heads or lanes, tokens, width]."""
        tokens = staged.shape[3]
        if self.uniform:
            return KV(tuple((layer[0][None], layer[1][None]) for layer in staged), tokens)
        lanes, at = staged.reshape(-1, tokens, self.width), 0
        layers: list[Pair] = []
        for pair in self.shapes:
            sides = []
            for heads, size in pair:
                n = heads * size // self.width
                part = lanes[at : at + n].view(heads, -1, tokens, self.width)
                sides.append(part.transpose(1, 2).reshape(1, heads, tokens, size))
                at += n
            layers.append((sides[0], sides[1]))
        return KV(tuple(layers), tokens)

    def stage(self, tokens: int) -> torch.Tensor:
        """Room for all boxes of so many tokens."""
        whole = self.geometry(1, 1 << 30)
        shape = (whole.layers, 2, whole.kv_heads, tokens, whole.head_dim)
        return torch.empty(shape, dtype=getattr(torch, self.dtype))

    def _cut(self, x: torch.Tensor) -> torch.Tensor:
        """[heads, tokens, size] -> [lanes, tokens, width]"""
        heads, tokens, size = x.shape
        lanes = x.reshape(heads, tokens, size // self.width, self.width).transpose(1, 2)
        return lanes.reshape(-1, tokens, self.width)


def layout_of(kv: KV) -> KVLayout | None:
    """None where tensors of one sequence differ in type or have one that no chunk can hold."""
    shapes = tuple(((k.shape[1], k.shape[3]), (v.shape[1], v.shape[3])) for k, v in kv.layers)
    dtypes = {str(x.dtype).removeprefix("torch.") for x in chain.from_iterable(kv.layers)}
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        return None
    return KVLayout(shapes, dtypes.pop())
