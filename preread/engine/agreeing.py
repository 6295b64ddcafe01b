"""How far the next tokens after a prefix that was put together agree with those after exact KV of
the same tokens: the two lie in memory, and the same text goes through the model after each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from preread.engine.kv import KV
from preread.kernels.attention import attend_at
from preread.models.agreement import compare
from preread.models.interface import Decoder

if TYPE_CHECKING:
    from preread.types import Int32Array


class Shares(NamedTuple):
    """tokens: compared; equal: at which both would write the same; divergence: sum of the
    Kullback-Leibler divergences from the exact model, in nats."""

    tokens: int = 0
    equal: int = 0
    divergence: float = 0.0

    def plus(self, more: Shares) -> Shares:
        tokens, equal = self.tokens + more.tokens, self.equal + more.equal
        return Shares(tokens, equal, self.divergence + more.divergence)


@torch.inference_mode()
def shares(
    decoder: Decoder, form: KV, exact: torch.Tensor, other: torch.Tensor, text: Int32Array
) -> Shares:
    """exact, other: KV [layers, 2, G, P, D] of one prefix; text: tokens [n] after it, n >= 1. form:
    how the engine keeps the KV of the text."""
    full, near = (logits_after(decoder, form, kv, text) for kv in (exact, other))
    found = compare(full, near, "KV put together from parts")
    return Shares(found.tokens, found.equal, found.divergence * found.tokens)


@torch.inference_mode()
def logits_after(decoder: Decoder, form: KV, kv: torch.Tensor, text: Int32Array) -> torch.Tensor:
    """One pass over a text that follows a prefix of that KV -> float32 [n, V]."""
    device, first = decoder.device, kv.shape[3]
    places = torch.arange(first, first + len(text), device=device)

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        own = form.rounded(torch.stack((k, v)).transpose(1, 2))
        keys, values = torch.cat((kv[layer].to(device), own), 2)
        return attend_at(q, keys, values, places, decoder.head_dim**-0.5)[0].to(q.dtype)

    tokens = torch.from_numpy(np.asarray(text, np.int64)).to(device)
    return decoder.logits(decoder.hidden(tokens, places, attend)).float()
