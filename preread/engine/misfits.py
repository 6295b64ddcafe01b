"""Rows that cannot run at all, found before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from preread.engine.jobs import ChooseSpec, GenerateSpec, TokenBatch
from preread.engine.plan import MemoryPlan
from preread.models.interface import Decoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Int32Array

MORE_PREFIX = "Raise engine.prefix_memory_mb or split the context."
MORE_SUFFIX = "Raise engine.suffix_memory_mb or lower max_tokens."


def misfits(batch: TokenBatch, decoder: Decoder, plan: MemoryPlan) -> dict[int, str]:
    """row -> why it cannot run: empty, unknown token ids, too long for the model or for memory."""
    errors: dict[int, str] = {}
    own = np.diff(batch.own.offsets)
    spec = batch.spec
    growth = spec.max_tokens if isinstance(spec, GenerateSpec) else 0
    beyond = int(spec.trie.depth.max(initial=0)) if isinstance(spec, ChooseSpec) else growth
    total = batch.base + own + beyond
    sizes = np.array([0, *(len(g) for g in batch.groups)])[batch.group_of + 1]
    for row in np.flatnonzero(own == 0).tolist():
        errors[row] = "the prompt is empty. Give at least one token."
    for row in np.flatnonzero(total > decoder.max_positions).tolist():
        prompt = int(batch.base[row] + own[row])
        errors[row] = (
            f"{prompt:,} prompt tokens + {beyond:,} of the answer are over the model's limit of "
            f"{decoder.max_positions:,}. Shorten the prompt or lower max_tokens."
        )
    for row in np.flatnonzero(own + growth > plan.suffix_tokens).tolist():
        errors.setdefault(row, f"out of memory: {plan.describe()} {MORE_SUFFIX}")
    for row in np.flatnonzero(sizes > plan.prefix_tokens).tolist():
        errors.setdefault(row, f"out of memory: {plan.describe()} {MORE_PREFIX}")
    for row in _strangers(batch, decoder.vocab_size):
        errors[row] = f"a token id is not below the vocabulary size of {decoder.vocab_size:,}."
    return errors


def _strangers(batch: TokenBatch, vocab: int) -> list[int]:
    """Rows with token ids outside [0, vocab)."""
    places = np.flatnonzero(_outside(batch.own.values, vocab))
    rows = np.searchsorted(batch.own.offsets, places, side="right") - 1
    bad = [g for g, tokens in enumerate(batch.groups) if _outside(tokens, vocab).any()]
    grouped = np.flatnonzero(np.isin(batch.group_of, bad))
    return [int(row) for row in np.union1d(rows, grouped)]


def _outside(tokens: Int32Array, vocab: int) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = (tokens < 0) | (tokens >= vocab)
    return result
