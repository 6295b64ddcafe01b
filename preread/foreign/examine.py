"""What a model's cache can be trusted with, found out on a handful of tokens when it is opened.

Architectures are many and law 1 has no exceptions, so nothing is believed because of a name: a
later token must not change an earlier one, and a cache that was cut, taken apart and put together
again must go on as if it had read the text. What fails is recomputed instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from preread.errors import UnsupportedModel
from preread.foreign.cache import GROWING
from preread.foreign.layout import KVLayout, layout_of
from preread.foreign.net import Ability, Net

if TYPE_CHECKING:
    from preread.types import Int32Array

# Two ways to compute the same differ by rounding, in bfloat16 by a few percent of the logits'
# spread; a cache that holds other keys is off by about the spread itself.
ALIKE = 0.2


def examine(net: Net, name: str) -> None:
    """Set the net's ability, why and layout. Raises UnsupportedModel naming a model whose past
    depends on its future."""
    head, tail, other = _texts(net.vocab_size)
    truth = net.forward(np.concatenate((head, other)), keep=4)
    first = net.forward(np.concatenate((head, tail)), keep=4)
    if not alike(first[:2], truth[:2]):
        raise UnsupportedModel(
            f"{name}: a later token changes what it makes of an earlier one, so it does not read "
            "from left to right.",
            hint="Choose a causal language model.",
        )
    found = _keeps(net, head, tail, other, truth)
    if isinstance(found, KVLayout):
        net.ability, net.layout = Ability.KEEP, found
        return
    net.why = found
    net.ability = Ability.STEP if _steps(net, head, other, truth) else Ability.WHOLE


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether logits [n, V] differ by rounding alone."""
    spread = (b - b.mean(-1, keepdim=True)).square().mean().sqrt()
    return bool((a - b).square().mean().sqrt() <= ALIKE * spread)


def _texts(vocab: int) -> tuple[Int32Array, Int32Array, Int32Array]:
    """A beginning and two different ends, two tokens each."""
    ids = (np.arange(1, 7) * vocab // 7).astype(np.int32)
    return ids[:2], ids[2:4], ids[4:]


def _keeps(
    net: Net, head: Int32Array, tail: Int32Array, other: Int32Array, truth: torch.Tensor
) -> KVLayout | str:
    """The layout of KV that can be cut and restored, or why there is none."""
    caches = net.caches
    try:
        if kind := caches.strange():
            return f"its cache has layers of kind {kind}"
        cache = caches.fresh(whole=True)
        net.forward(np.concatenate((head, tail)), cache)
        held = [i for i, layer in enumerate(cache.layers) if layer.keys is not None]
        caches.places = tuple(held)
        kv = caches.take(cache, 4)
        layout = layout_of(kv) if held else None
        if layout is None:
            return "its cache holds no keys and values of one type"
        before = [x.clone() for pair in kv.layers for x in pair]
        again = caches.restore(kv.cut(2), whole=False)
        if not alike(net.forward(other, again, past=2, keep=2), truth[2:]):
            return "a cache that was cut goes on differently"
        if not all(map(torch.equal, before, (x for pair in kv.layers for x in pair))):
            return "its cache writes into what it was given"  # rows could not share a prefix
    except Exception as exc:  # whatever an unknown architecture makes of it
        return f"its cache cannot be used ({type(exc).__name__}: {exc})"
    return layout


def _steps(net: Net, head: Int32Array, other: Int32Array, truth: torch.Tensor) -> bool:
    """Whether the model's own cache can be continued by a token."""
    try:
        if net.caches.strange(GROWING):
            return False
        cache = net.caches.own()
        net.forward(np.concatenate((head, other[:1])), cache)
        return alike(net.forward(other[1:], cache, past=3), truth[3:])
    except Exception:  # then it has no cache that could be used
        return False
