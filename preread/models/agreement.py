"""How far weights or KV of lower precision are the same model: measured on a text, not assumed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from preread.errors import UsageError
from preread.kernels.attention import attend_causal
from preread.kernels.kv import rounded
from preread.models.decoder import PackedDecoder
from preread.models.interface import Decoder
from preread.models.load import LoadedModel, choose_linear
from preread.models.weights import Checkpoint

TOKENS = 512  # read, at most


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two models over one text, at every token of it. what: is of lower precision in one, e.g.
    "int8 KV". equal: places where both would write the same token; clear, clear_equal: the same
    among places where the full model's best token leads by more than `error`, the root mean square
    of what quantising moved its lead; divergence: mean Kullback-Leibler divergence from the full
    model in nats."""

    what: str
    tokens: int
    equal: int
    clear: int
    clear_equal: int
    error: float
    divergence: float

    def __str__(self) -> str:
        return (
            f"{self.what} against full precision, {self.tokens} tokens of text: greedy "
            f"token equal at {self.equal / self.tokens:.1%}, at "
            f"{self.clear_equal / max(1, self.clear):.1%} of the {self.clear / self.tokens:.0%} "
            f"where the lead exceeds the error; mean KL {self.divergence:.2e} nats"
        )


def measure(model: LoadedModel, text: str) -> Agreement:
    """Compare a model whose weights or KV are quantised with itself in full precision. Needs memory
    for both weights. Raises UsageError for quantised random weights or a text of fewer than two
    tokens."""
    precisions = {"weights": model.weights_precision, "KV": model.kv_precision}
    what = " and ".join(f"{kind} {name}" for name, kind in precisions.items() if kind != "full")
    same = model.weights_precision == "full"
    if not same and str(model.fingerprint_parts["weights"]).startswith("random:"):
        raise UsageError("Random weights cannot be read again.", hint="Use real weights.")
    ids = model.tokenizer.prompt_tokens(text)[:TOKENS]
    if len(ids) < 2:
        raise UsageError("There is no text to compare on.", hint="Give a longer text.")
    dtype, device = getattr(torch, model.dtype), model.decoder.device
    full = model.decoder
    if not same:
        tensors = Checkpoint(model.folder, model.config).load(dtype, device)
        full = PackedDecoder(model.config, tensors, choose_linear("full", device))
    tokens = torch.from_numpy(np.asarray(ids, np.int64)).to(device)
    other = logits(model.decoder, tokens, model.kv_precision)
    return compare(logits(full, tokens), other, what)


@torch.inference_mode()
def logits(decoder: Decoder, tokens: torch.Tensor, kv_precision: str = "full") -> torch.Tensor:
    """One whole pass without a cache: tokens int64 [T] -> float32 [T, V]."""

    def attend(_: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = rounded(k, kv_precision), rounded(v, kv_precision)
        return attend_causal(q[None], k[None], v[None], decoder.head_dim**-0.5)[0][0]

    positions = torch.arange(len(tokens), device=tokens.device)
    return decoder.logits(decoder.hidden(tokens, positions, attend)).float()


def compare(full: torch.Tensor, other: torch.Tensor, what: str) -> Agreement:
    """full, other: logits [T, V] at the same places of the same text. what: see Agreement."""
    best = full.topk(2, dim=-1)
    lead = best.values[:, 0] - best.values[:, 1]
    pair = other.gather(1, best.indices)
    error = float((pair[:, 0] - pair[:, 1] - lead).square().mean().sqrt())
    same, clear = other.argmax(-1) == full.argmax(-1), lead > error  # topk settles ties otherwise
    log_full, log_other = full.log_softmax(-1), other.log_softmax(-1)
    divergence = (log_full.exp() * (log_full - log_other)).sum(-1).mean()
    return Agreement(
        what=what,
        tokens=len(full),
        equal=int(same.sum()),
        clear=int(clear.sum()),
        clear_equal=int((same & clear).sum()),
        error=error,
        divergence=float(divergence),
    )
