"""Law 1 measured on the engine: see preread.tokens.parity."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from preread.engine.engine import Engine
from preread.errors import EngineError, UsageError
from preread.kernels.attention import attend_causal
from preread.kernels.kv import rounded
from preread.models.decoder import PackedDecoder
from preread.models.interface import Decoder
from preread.models.load import LoadedModel, rounded_linear
from preread.models.weights import Checkpoint
from preread.tokens.batch import TokenBatch
from preread.tokens.parity import Observation, ParityReport, trials
from preread.tokens.parity import judge as compare

if TYPE_CHECKING:
    from preread.types import Int32Array


def observe(engine: Engine, batch: TokenBatch) -> list[Observation]:
    """Run a generating batch alone, from an idle engine to its end. Raises EngineError if a row
    fails."""
    seen: list[list[torch.Tensor]] = [[] for _ in range(len(batch))]
    tokens: list[list[int]] = [[] for _ in range(len(batch))]
    job = 0

    def probe(number: int, row: int, logits: torch.Tensor) -> None:
        if number == job and len(seen[row]) == len(tokens[row]):
            seen[row].append(logits.float().cpu())

    engine.watch(probe)
    try:
        job = engine.submit(batch)
        while not engine.idle or engine.has_news:
            if (news := engine.step().get(job)) is None:
                continue
            if news.errors:
                raise EngineError(f"A row failed: {next(iter(news.errors.values()))}")
            for i, row in enumerate(news.rows.tolist()):
                tokens[row] += news.tokens.row(i).tolist()
    finally:
        engine.watch(None)
    prompts = [np.concatenate((batch.head(i), batch.own.row(i))) for i in range(len(batch))]
    return [
        Observation(
            np.concatenate((prompt, np.array(out, np.int32))), torch.stack(logits[: len(out)])
        )
        for prompt, out, logits in zip(prompts, tokens, seen, strict=True)
        if out
    ]


@torch.inference_mode()
def judge(
    observations: Sequence[Observation],
    reference: Decoder,
    plain: Decoder,
    kv_precision: str = "full",
) -> ParityReport:
    """Compare with recomputing everything. reference: the same weights in a wider type; plain: in
    the engine's own, and with its precision of KV."""
    own = partial(forward, plain, kv_precision=kv_precision)
    return compare(observations, partial(forward, reference), own)


def forward(
    decoder: Decoder, tokens: Int32Array, last: int, kv_precision: str = "full"
) -> torch.Tensor:
    """One whole pass without any cache -> logits [last, V] that decide the last `last` tokens."""
    scale = decoder.head_dim**-0.5

    def attend(_: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = rounded(k, kv_precision), rounded(v, kv_precision)
        return attend_causal(q[None], k[None], v[None], scale)[0][0]

    ids = torch.from_numpy(tokens[:-1].astype(np.int64)).to(decoder.device)
    hidden = decoder.hidden(ids, torch.arange(len(ids), device=decoder.device), attend)
    return decoder.logits(hidden[-last:]).float()


def parity(
    engine: Engine, reference: Decoder, *, prompts: int = 8, prefix: int = 256, steps: int = 8,
    seed: int = 0,
) -> ParityReport:  # fmt: skip
    """Random prompts on a few random prefixes, first cold, then resident, many at once and alone.
    Needs an idle engine. The reference keeps its KV in full, whatever the engine's precision is:
    rounded KV would be another at every value near an edge between two codes."""
    seen = []
    for batch in trials(engine.decoder.vocab_size, prompts, prefix, steps, seed):
        seen += observe(engine, batch)
    return judge(seen, reference, engine.decoder, engine.shape.precision)


def wider(model: LoadedModel) -> PackedDecoder:
    """The same weights again, in float64 for a float32 model and in float32 for the others. Raises
    UsageError for random weights."""
    if str(model.fingerprint_parts["weights"]).startswith("random:"):
        raise UsageError(
            "Random weights cannot be read again in a wider type.", hint="Use real weights."
        )
    dtype = torch.float64 if model.dtype == "float32" else torch.float32
    checkpoint, device = Checkpoint(model.folder, model.config), model.decoder.device
    if model.weights_precision == "full":
        return PackedDecoder(model.config, checkpoint.load(dtype, device))
    tensors = checkpoint.load(getattr(torch, model.dtype), device)  # what was quantised
    wide = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return PackedDecoder(model.config, wide, rounded_linear(model.weights_precision))
