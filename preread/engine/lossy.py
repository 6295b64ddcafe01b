"""What a codec that loses something does to the next tokens: measured on a text, not assumed.

The same pass twice, with the KV of the first tokens once as computed and once as a chunk gives it
back; so the difference is the codec's alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from preread.errors import UsageError
from preread.kernels.attention import attend_causal
from preread.models.agreement import Agreement, compare
from preread.models.interface import Decoder
from preread.store.codec import Codec
from preread.store.keys import Geometry

if TYPE_CHECKING:
    from preread.types import Int32Array


@dataclass(frozen=True, slots=True)
class Loss:
    """keys, values: root mean square error of the KV as a share of its own root mean square;
    logits: root mean square of what moved a logit, worst: the furthest; agreement: of the next
    tokens, at each token after the prefix; prefix: tokens whose KV went through the codec."""

    codec: str
    prefix: int
    keys: float
    values: float
    logits: float
    worst: float
    agreement: Agreement


@torch.inference_mode()
def measure(
    decoder: Decoder, geometry: Geometry, codec: Codec, tokens: Int32Array, split: int
) -> Loss:
    """tokens [T], of which the first `split` are the kept prefix. Raises UsageError unless both
    parts are there."""
    if not 0 < split < len(tokens):
        raise UsageError("There is no text to compare on.", hint="Give a longer text.")
    ids = torch.from_numpy(np.asarray(tokens, np.int64)).to(decoder.device)
    kept: list[torch.Tensor] = []
    full = _logits(decoder, ids, split, kept, None)
    exact = torch.stack(kept).cpu()  # [layers, 2, heads, split, dim]
    lossy = through(codec, geometry, exact)
    other = _logits(decoder, ids, split, [], lossy.to(decoder.device))
    moved = full - other
    return Loss(
        codec=codec.name,
        prefix=split,
        keys=_share(exact[:, 0], lossy[:, 0]),
        values=_share(exact[:, 1], lossy[:, 1]),
        logits=float(moved.square().mean().sqrt()),
        worst=float(moved.abs().max()),
        agreement=compare(full, other, codec.name),
    )


def through(codec: Codec, geometry: Geometry, kv: torch.Tensor) -> torch.Tensor:
    """KV [layers, 2, heads, tokens, dim] as its chunks give it back."""
    back = torch.empty_like(kv)
    tokens = kv.shape[3]
    for start in range(0, tokens, geometry.chunk_tokens):
        for box in geometry.boxes(start, min(start + geometry.chunk_tokens, tokens)):
            a, b, i, j, g, h = box
            shape = box.shape(geometry.head_dim)
            payload = codec.encode(kv[i:j, :, g:h, a:b], shape, geometry.dtype)
            back[i:j, :, g:h, a:b] = codec.decode(payload, shape, geometry.dtype)
    return back


def _logits(
    decoder: Decoder,
    tokens: torch.Tensor,
    split: int,
    kept: list[torch.Tensor],
    given: torch.Tensor | None,
) -> torch.Tensor:
    """One whole pass -> logits [T - split, V] in float32. kept: gets the KV of the first `split`
    tokens, layer by layer; given: stands in for it."""

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if given is not None:
            k, v = (
                torch.cat((first.transpose(0, 1), own[split:]))
                for first, own in zip(given[layer], (k, v), strict=True)
            )
        kept.append(torch.stack((k[:split], v[:split])).transpose(1, 2).clone())
        return attend_causal(q[None], k[None], v[None], decoder.head_dim**-0.5)[0][0]

    positions = torch.arange(len(tokens), device=tokens.device)
    hidden = decoder.hidden(tokens, positions, attend)
    return decoder.logits(hidden[split:]).float()


def _share(exact: torch.Tensor, lossy: torch.Tensor) -> float:
    wide = exact.double()
    return float((lossy.double() - wide).norm() / wide.norm())
