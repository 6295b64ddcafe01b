"""Which tokens of a flat batch see which: documents, and branches that each see the document alone.

A conversation is a document and branches (a question, its follow-ups, their answers). A branch sees
the document and itself, as every request to the product does, so that one reading of a document
trains any number of first questions. Its positions go on from the document's end.

`Layout` says it for T tokens; `dense` turns it into the obvious mask, `Blocks` into the block lists
that flex attention skips by.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Edge of a block of queries and keys."""


class Layout(NamedTuple):
    """`sequence`, `branch` (0: document) and `position` of every token, all (T,). Sequences lie one
    after the other, each with its document first.
    """

    sequence: npt.NDArray[np.int32]
    branch: npt.NDArray[np.int32]
    position: npt.NDArray[np.int64]


def positions(branch: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Positions (N,) of one sequence: every branch starts where the document ends."""
    place = np.arange(len(branch), dtype=np.int64)
    document = int((branch == 0).sum())
    starts = np.flatnonzero(np.diff(branch, prepend=0))
    begin = np.zeros(len(branch), np.int64)
    begin[starts] = starts
    begin = np.maximum.accumulate(begin)
    return np.where(branch == 0, place, place - begin + document)


def dense(layout: Layout) -> Tensor:
    """The mask (T, T): query row, key column."""
    sequence, branch = (torch.from_numpy(part) for part in layout[:2])
    place = torch.arange(len(sequence))
    seen = (sequence[:, None] == sequence) & (place[:, None] >= place)
    return seen & ((branch == 0) | (branch[:, None] == branch))


class Lists(NamedTuple):
    """For each block of queries how many blocks of keys it needs and which, (T/B,) and (T/B, T/B):
    first those with a mask inside, then those seen as a whole.
    """

    partial_count: npt.NDArray[np.int32]
    partial: npt.NDArray[np.int32]
    full_count: npt.NDArray[np.int32]
    full: npt.NDArray[np.int32]


def block_lists(layout: Layout, block: int = BLOCK) -> Lists:
    """Blocks that a query block needs: the documents of its sequences, and its own branches."""
    sequence, branch = layout.sequence, layout.branch
    count = len(sequence) // block
    change = np.flatnonzero((np.diff(sequence) != 0) | (np.diff(branch) != 0)) + 1
    group_start = np.zeros(len(sequence), np.int64)
    group_start[change] = change
    group_start = np.maximum.accumulate(group_start)
    first = np.searchsorted(sequence, sequence, side="left")
    ends = np.concatenate([change, [len(sequence)]])
    document_end = ends[np.searchsorted(ends, first, side="right")]
    document_end = np.where(branch[first] == 0, document_end, first)
    needed = np.zeros((count, count), bool)
    whole = np.zeros((count, count), bool)
    for row in range(count):
        low, high = row * block, (row + 1) * block
        for start in set(first[low:high].tolist()):
            stop = min(int(document_end[start]), high)
            needed[row, start // block : -(-stop // block)] = True
        needed[row, int(group_start[low]) // block : row + 1] = True
        start = int(first[low])
        if first[high - 1] == start:
            stop = min(int(document_end[start]), low)
            whole[row, -(-start // block) : stop // block] = True
    return Lists(*_lists(needed & ~whole), *_lists(whole))


def _lists(wanted: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    count = wanted.sum(1).astype(np.int32)
    row, key = np.nonzero(wanted)
    order = np.zeros(wanted.shape, np.int32)
    order[row, np.arange(len(row)) - (np.cumsum(count) - count)[row]] = key
    return count, order


@dataclass(slots=True)
class Blocks:
    """The block mask of the current batch on a device; its tensors stay, their contents change."""

    sequence: Tensor
    branch: Tensor

    @staticmethod
    def on(device: torch.device, size: int) -> "Blocks":
        """Room for batches of `size` tokens."""
        room = [torch.zeros(size, dtype=torch.int32, device=device) for _ in range(2)]
        return Blocks(*room)

    def mask(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Flex attention's mask function."""
        seen = (self.sequence[query] == self.sequence[key]) & (query >= key)
        return seen & ((self.branch[key] == 0) | (self.branch[query] == self.branch[key]))

    def load(self, layout: Layout, lists: Lists) -> BlockMask:
        """The mask of a batch."""
        device = self.sequence.device
        self.sequence.copy_(torch.from_numpy(layout.sequence), non_blocking=True)
        self.branch.copy_(torch.from_numpy(layout.branch), non_blocking=True)
        partial_count, partial, full_count, full = (
            torch.from_numpy(part)[None, None].to(device, non_blocking=True) for part in lists
        )
        return BlockMask.from_kv_blocks(
            partial_count, partial, full_count, full, BLOCK_SIZE=BLOCK, mask_mod=self.mask
        )
