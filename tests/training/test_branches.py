"""Branches of a conversation see the document and themselves, whichever way the mask is built."""

import numpy as np
import pytest
import torch

from training.batches import Sequence, pack
from training.branches import BLOCK, Blocks, Layout, block_lists, dense, positions
from training.model import Reader, Shape, dense_attention, flex

SMALL = Shape(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
)


def conversation(rng: np.random.Generator, document: int, branches: list[int]) -> Sequence:
    total = document + sum(branches)
    sizes = [document, *branches]
    return Sequence(
        rng.integers(3, 50, total).astype(np.uint16),
        np.full(total, 100, np.uint8),
        np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
    )


def layout(seed: int, size: int) -> Layout:
    rng = np.random.default_rng(seed)
    picked: list[Sequence] = []
    used = 0
    while True:
        document = int(rng.choice([3, 50, 128, 300]))
        row = conversation(rng, document, rng.integers(1, 70, rng.integers(0, 9)).tolist())
        if used + len(row.tokens) > size:
            return pack(picked, size, rng).layout
        picked.append(row)
        used += len(row.tokens)


def test_positions_go_on_from_the_document() -> None:
    branch = np.array([0, 0, 0, 1, 1, 2, 3, 3], np.int32)
    assert positions(branch).tolist() == [0, 1, 2, 3, 4, 3, 3, 4]
    assert positions(np.zeros(4, np.int32)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(6))
def test_block_lists_hold_all_that_is_seen(seed: int) -> None:
    made = layout(seed, 2048)
    lists = block_lists(made)
    count = 2048 // BLOCK
    blocks = (
        dense(made).view(count, BLOCK, count, BLOCK).permute(0, 2, 1, 3).reshape(count, count, -1)
    )
    wanted = {(row, key) for row in range(count) for key in range(count) if blocks[row, key].any()}
    partial = {
        (row, int(key))
        for row in range(count)
        for key in lists.partial[row, : lists.partial_count[row]]
    }
    full = {
        (row, int(key)) for row in range(count) for key in lists.full[row, : lists.full_count[row]]
    }
    assert full and not partial & full
    assert wanted <= partial | full
    assert all(blocks[row, key].all() for row, key in full)
    assert all(key <= row for row, key in partial | full)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_the_dense_mask() -> None:
    made = layout(7, 1024)
    blocks = Blocks.on(torch.device("cpu"), 1024)
    q, k, v = (torch.randn(1024, heads, 16) for heads in (4, 2, 2))
    with torch.no_grad():
        fast = flex(blocks.load(made, block_lists(made)))(q, k, v)
        slow = dense_attention(dense(made))(q, k, v)
    assert torch.allclose(fast, slow, atol=1e-5)


def test_a_branch_is_read_as_if_it_were_the_only_one() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    row = conversation(rng, 40, [7, 12, 5])
    batch = pack([conversation(rng, 20, [3]), row], 128, rng)
    model = Reader(SMALL).eval()
    with torch.no_grad():
        states = model.hidden(
            torch.from_numpy(batch.tokens),
            torch.from_numpy(batch.layout.position),
            dense_attention(dense(batch.layout)),
        )
        for branch in (1, 2, 3):
            kept = np.isin(row.branches, [0, branch])
            alone = torch.from_numpy(row.tokens[kept].astype(np.int64))
            causal = torch.ones(len(alone), len(alone)).tril().bool()
            expected = model.hidden(alone, torch.arange(len(alone)), dense_attention(causal))
            own = 23 + torch.from_numpy(np.flatnonzero(kept))
            assert torch.allclose(states[own], expected, atol=1e-5)
