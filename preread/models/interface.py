"""What the engine needs from a decoder: two calls. Shapes: T tokens of a packed, padding-free
batch, H query heads, G key/value heads, D head size, V vocabulary, E hidden size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

# (layer, q [T, H, D], k [T, G, D], v [T, G, D]) -> [T, H, D]. q and k come after q/k norm and RoPE;
# the callee keeps k and v (they are the KV cache) and attends as its batch demands.
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Decoder(Protocol):
    """A causal decoder without any notion of cache, batch or mask."""

    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...

    def hidden(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """tokens, positions: int32 or int64 [T] on the device -> [T, E] after the final norm. No LM
        head."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, E] -> [R, V], of any float type: the LM head on the rows that are needed."""
        ...
