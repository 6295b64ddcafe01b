"""Rows that cannot run at all, found before anything is computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from preread.engine.marks import Marks
from preread.engine.plan import MemoryPlan
from preread.models.interface import Decoder
from preread.tokens.batch import GenerateSpec, TokenBatch
from preread.tokens.misfits import misfits as token_misfits

MORE_PREFIX = "Raise engine.prefix_memory_mb or split the context."
MORE_SUFFIX = "Raise engine.suffix_memory_mb or lower max_tokens."


def misfits(batch: TokenBatch, decoder: Decoder, plan: MemoryPlan, marks: Marks) -> dict[int, str]:
    """row -> why it cannot run: as a token batch, or because memory can never hold it."""
    if batch.named:
        batch = replace(batch, groups=[marks.real(group) for group in batch.groups])
    errors = token_misfits(batch, decoder.max_positions, decoder.vocab_size)
    own = np.diff(batch.own.offsets)
    growth = batch.spec.max_tokens if isinstance(batch.spec, GenerateSpec) else 0
    sizes = np.array([0, *(len(g) for g in batch.groups)])[batch.group_of + 1]
    for row in np.flatnonzero(own + growth > plan.suffix_tokens).tolist():
        errors.setdefault(row, f"out of memory: {plan.describe()} {MORE_SUFFIX}")
    for row in np.flatnonzero(sizes > plan.prefix_tokens).tolist():
        errors.setdefault(row, f"out of memory: {plan.describe()} {MORE_PREFIX}")
    return errors
