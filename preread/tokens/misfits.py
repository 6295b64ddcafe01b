"""Rows that no engine can run, found before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from preread.tokens.batch import ChooseSpec, GenerateSpec, TokenBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Int32Array


def misfits(batch: TokenBatch, limit: int, vocab: int) -> dict[int, str]:
    """row -> why it cannot run: empty, unknown token ids, too long for the model. limit: most
    positions; vocab: token ids lie below it."""
    errors: dict[int, str] = {}
    own = np.diff(batch.own.offsets)
    spec = batch.spec
    beyond = spec.max_tokens if isinstance(spec, GenerateSpec) else 0
    if isinstance(spec, ChooseSpec):
        beyond = int(spec.trie.depth.max(initial=0))
    for row in np.flatnonzero(own == 0).tolist():
        errors[row] = "the prompt is empty. Give at least one token."
    for row in np.flatnonzero(batch.base + own + beyond > limit).tolist():
        prompt = int(batch.base[row] + own[row])
        errors[row] = (
            f"{prompt:,} prompt tokens + {beyond:,} of the answer are over the model's limit of "
            f"{limit:,}. Shorten the prompt or lower max_tokens."
        )
    for row in _strangers(batch, vocab):
        errors[row] = f"a token id is not below the vocabulary size of {vocab:,}."
    return errors


def _strangers(batch: TokenBatch, vocab: int) -> list[int]:
    """Rows with token ids outside [0, vocab)."""
    places = np.flatnonzero(_outside(batch.own.values, vocab))
    rows = np.searchsorted(batch.own.offsets, places, side="right") - 1
    bad = [g for g, tokens in enumerate(batch.groups) if _outside(tokens, vocab).any()]
    grouped = np.flatnonzero(np.isin(batch.group_of, bad))
    return [int(row) for row in np.union1d(rows, grouped)]


def _outside(tokens: Int32Array, vocab: int) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = tokens.view(np.uint32) >= vocab  # negative ones are large
    return result
