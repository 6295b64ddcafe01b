"""A transformers cache as plain tensors, and back.

What a token's key and value are depends on the tokens before it and on nothing after it. So the KV
that is kept is that of *all* tokens, also in layers whose window forgets them: then every prefix of
a kept prefix is there, exactly. (A window's last tokens alone could be continued at the very end
only: one token less, and the window would reach back to tokens that are gone.) A row that merely
runs gets the last tokens of each window, as transformers itself would keep them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from preread.errors import EngineError

Pair = tuple[torch.Tensor, torch.Tensor]  # keys, values: [1, heads, tokens, head size]

# Layers that hold nothing but keys and values in token order, or nothing at all.
CUTTABLE = frozenset({"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"})
# Layers whose state a token moves on. Not those that choose what to attend to by an index of their
# own: with ties they choose otherwise for one token than for many.
GROWING = CUTTABLE | {
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
}


@dataclass(frozen=True, slots=True)
class KV:
    """Keys and values of a prefix, of those layers that keep any. Never changed in place, so that
    rows may share them. tokens: how many."""

    layers: tuple[Pair, ...]
    tokens: int

    def cut(self, tokens: int) -> KV:
        """The first `tokens` tokens: a view."""
        return KV(tuple((k[:, :, :tokens], v[:, :, :tokens]) for k, v in self.layers), tokens)

    def then(self, more: KV) -> KV:
        """This, and what comes after it."""
        pairs = zip(self.layers, more.layers, strict=True)
        joined = tuple(
            (torch.cat((k, after_k), 2), torch.cat((v, after_v), 2))
            for (k, v), (after_k, after_v) in pairs
        )
        return KV(joined, self.tokens + more.tokens)

    def to(self, device: torch.device) -> KV:
        return KV(tuple((k.to(device), v.to(device)) for k, v in self.layers), self.tokens)


class WholeSlidingLayer(DynamicSlidingWindowLayer):  # type: ignore[misc]  # untyped base
    """A sliding window that attends to its last tokens and keeps all."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> Pair:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[-2]
        self.cumulative_length += new
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        seen = self.sliding_window - 1 + new
        return self.keys[:, :, -seen:], self.values[:, :, -seen:]


class Caches:
    """Makes the caches of one model. places: the layers that keep anything."""

    def __init__(self, config: Any) -> None:
        """config: of the text model."""
        self._config = config
        self.places: tuple[int, ...] = ()

    def strange(self, known: frozenset[str] = CUTTABLE) -> str:
        """A kind of layer that is not among the known ones, or an empty string."""
        kinds = [type(layer).__name__ for layer in self.own().layers]
        return next((kind for kind in kinds if kind not in known), "")

    def window(self) -> int:
        """Tokens of the longest sliding window, 0 if there is none."""
        sizes = (getattr(layer, "sliding_window", 0) for layer in self.own().layers)
        return max((int(size or 0) for size in sizes), default=0)

    def own(self) -> Any:
        """An empty cache as transformers makes it."""
        return DynamicCache(config=self._config)

    def fresh(self, *, whole: bool) -> Any:
        """An empty cache. whole: it will be taken and kept."""
        cache = self.own()
        if whole:
            cache.layers = [_whole(layer) for layer in cache.layers]
        return cache

    def restore(self, kv: KV, *, whole: bool) -> Any:
        """A cache that has read these tokens."""
        cache = self.fresh(whole=whole)
        for place, (k, v) in zip(self.places, kv.layers, strict=True):
            layer = cache.layers[place]
            layer.lazy_initialization(k, v)
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = kv.tokens
                if not whole:
                    last = max(0, kv.tokens - layer.sliding_window + 1)
                    k, v = k[:, :, last:], v[:, :, last:]
            layer.keys, layer.values = k, v
        return cache

    def take(self, cache: Any, tokens: int) -> KV:
        """What a whole cache has kept of the first `tokens` tokens it has read."""
        pairs = tuple((cache.layers[p].keys, cache.layers[p].values) for p in self.places)
        if any(k.shape[2] < tokens or v.shape[2] < tokens for k, v in pairs):
            raise EngineError("A cache has lost tokens.", hint="Please report this model.")
        return KV(pairs, tokens).cut(tokens)


def fork(cache: Any) -> Any:
    """A cache that goes its own way. Tensors are shared: layers replace them and never write into
    them."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def _whole(layer: Any) -> Any:
    sliding = isinstance(layer, DynamicSlidingWindowLayer)
    return WholeSlidingLayer(layer.sliding_window) if sliding else layer
