"""A kept row's KV becomes part of the prefix tree, so that the next turn continues it."""

from __future__ import annotations

import numpy as np
import torch

from preread.engine.arena import Arena
from preread.engine.branch import Branches
from preread.engine.pages import Pages
from preread.engine.prefix import PrefixTree
from preread.engine.sequence import Sequences


@torch.inference_mode()
def keep_row(
    slot: int, seqs: Sequences, branches: Branches, tree: PrefixTree, arena: Arena, pages: Pages,
    now: float, lease_s: float,
) -> bool:  # fmt: skip
    """Move the KV of a row's prompt and output (all but the last token, which was never read) from
    its pages to the tree. False: no memory for it, or a load writes there now; the next turn
    computes again what is missing then."""
    branch, own = branches[int(seqs.branch[slot])], int(seqs.computed[slot])
    head = tree.tokens(branch.leaf, branch.base)
    tokens = np.concatenate((head, seqs.tokens[slot, :own]))
    known, at = tree.match(tokens)
    if any(segment.loading for segment in tree.path(known, at)):
        return False
    leaf = tree.insert(tokens, now)
    if leaf is None:
        return False
    start = max(branch.base, tree.ready(leaf, len(tokens)))
    if start < len(tokens):
        runs = tree.runs(leaf, start, len(tokens))
        arena.keep(runs, pages, seqs.pages_of(slot), start - branch.base)
        tree.advance(leaf, len(tokens))
    tree.lease(leaf, len(tokens), lease_s)
    tree.pin(leaf)
    tree.unpin(leaf, now)  # used now
    return True
