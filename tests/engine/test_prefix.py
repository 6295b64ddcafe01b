"""The prefix tree: exact matching, splits that holders do not notice, leases, eviction."""

import numpy as np
import pytest
import torch

from preread.engine.arena import Arena
from preread.engine.kv import KVShape
from preread.engine.prefix import PrefixTree, common
from preread.metrics import Metrics

SHAPE = KVShape(1, 1, 8, torch.float32, torch.device("cpu"))


def tree(extents: int = 16) -> PrefixTree:
    return PrefixTree(Arena(SHAPE, extents, 8), Metrics())


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def fill(t: PrefixTree, tokens: np.ndarray, now: float = 0.0):
    leaf = t.insert(tokens, now)
    assert leaf is not None
    t.advance(leaf, len(tokens))
    t.check()
    return leaf


def test_common():
    assert common(ids(1, 2, 3), ids(1, 2, 4, 5)) == 2
    assert common(ids(1, 2), ids(1, 2, 3)) == 2
    assert common(ids(), ids(1)) == 0


def test_match_and_split_at_the_first_differing_token():
    t = tree()
    first = fill(t, ids(1, 2, 3, 4, 5))
    assert t.match(ids(1, 2, 3, 9)) == (first, 3)
    assert t.match(ids(7)) == (t.root, 0)
    second = t.insert(ids(1, 2, 3, 9, 9), 0.0)
    t.check()
    assert first.parent is second.parent
    assert first.tokens.tolist() == [4, 5]
    assert (first.start, second.start) == (3, 3)
    assert t.ready(first, 5) == 5
    assert t.ready(second, 5) == 3
    assert t.runs(first, 0, 5) == [(0, 5)]
    assert t.tokens(second, 4).tolist() == [1, 2, 3, 9]


def test_a_holder_does_not_notice_a_split():
    t = tree()
    leaf = fill(t, np.arange(30, dtype=np.int32))
    t.pin(leaf)
    before = t.runs(leaf, 0, 25)
    version = t.version
    other = t.insert(np.concatenate((np.arange(11), [99])).astype(np.int32), 1.0)
    assert t.version == version + 1
    assert t.runs(leaf, 0, 25) == before
    assert t.tokens(leaf, 25).tolist() == list(range(25))
    assert other.parent is leaf.parent
    t.check()


def test_a_continuation_is_contiguous():
    t = tree()
    fill(t, np.arange(20, dtype=np.int32))
    leaf = fill(t, np.arange(50, dtype=np.int32))
    assert t.runs(leaf, 0, 50) == [(0, 50)]


def test_partly_read_segments_split_honestly():
    t = tree()
    leaf = t.insert(np.arange(30, dtype=np.int32), 0.0)
    t.advance(leaf, 12)
    other = t.insert(np.concatenate((np.arange(20), [99])).astype(np.int32), 0.0)
    t.check()
    assert t.ready(leaf, 30) == 12
    assert t.ready(other, 21) == 12
    t.advance(leaf, 30)
    assert t.ready(other, 21) == 20
    t.check()


def test_eviction_takes_the_oldest_unheld_leaf_and_spares_leases():
    t = tree(4)
    leaves = {}
    for i, now in enumerate((1.0, 2.0, 3.0, 4.0)):
        leaves[i] = fill(t, np.full(8, i, np.int32), now)
    t.lease(leaves[0], 8, 100.0)
    t.pin(leaves[0])
    t.unpin(leaves[0], 1.0)  # oldest, but leased until 101
    t.pin(leaves[1])
    fill(t, np.full(8, 9, np.int32), 5.0)
    assert t.match(np.full(8, 2, np.int32))[1] == 0
    assert all(t.match(np.full(8, i, np.int32))[1] == 8 for i in (0, 1, 3, 9))
    fill(t, np.full(16, 10, np.int32), 6.0)  # 3 and 9 must go
    assert all(t.match(np.full(8, i, np.int32))[1] == 8 for i in (0, 1))
    assert t._metrics.snapshot()["engine.leases_broken"] == 0
    fill(t, np.full(24, 11, np.int32), 7.0)  # only by breaking the lease
    assert t._metrics.snapshot()["engine.leases_broken"] == 1
    assert t.insert(np.full(32, 12, np.int32), 8.0) is None  # leaf 1 is held
    assert t.match(np.full(24, 11, np.int32))[1] == 24, "evicted for nothing"
    t.check()


def test_eviction_never_takes_the_path_it_extends():
    t = tree(4)
    fill(t, np.arange(16, dtype=np.int32), 1.0)
    fill(t, np.full(16, 7, np.int32), 2.0)
    leaf = fill(t, np.arange(30, dtype=np.int32), 3.0)
    assert t.runs(leaf, 0, 16) == [(0, 16)]
    assert t.match(np.full(16, 7, np.int32))[1] == 0


def test_an_unlinked_segment_is_found_by_nobody_and_goes_with_its_holder():
    t = tree()
    tokens = np.arange(20, dtype=np.int32)
    fill(t, tokens)
    private = t.insert(tokens, 0.0, linked=False)
    t.pin(private)
    assert t.ready(private, 20) == 0
    assert t.match(tokens)[0] is not private
    t.check()
    t.unpin(private, 1.0)
    assert private not in t.segments
    t.check()


@pytest.mark.parametrize("seed", range(4))
def test_any_history_leaves_it_whole(seed):
    make = np.random.default_rng(seed)
    t, pinned = tree(24), []
    for now in range(250):
        tokens = make.integers(0, 2, make.integers(1, 40)).astype(np.int32)
        leaf = t.insert(tokens, float(now))
        if leaf is not None:
            assert t.tokens(leaf, len(tokens)).tolist() == tokens.tolist()
            t.advance(leaf, int(make.integers(t.ready(leaf, len(tokens)), len(tokens) + 1)))
            if make.random() < 0.3:
                t.pin(leaf)
                pinned.append((leaf, tokens))
        if len(pinned) > 5:
            held, _ = pinned.pop(int(make.integers(len(pinned))))
            t.unpin(held, float(now))
        for held, known in pinned:
            assert t.tokens(held, len(known)).tolist() == known.tolist()
        t.check()


def test_a_path_whose_lie_leaves_too_little_room_is_laid_anew():
    t = tree(4)
    head = np.arange(10, dtype=np.int32)
    for fork in (ids(100, 101), ids(200, 201)):  # the first takes the rest of the head's extent
        last = np.concatenate((head, fork))
        fill(t, last)
    whole = np.concatenate((last, np.arange(300, 320, dtype=np.int32)))
    assert len(whole) == t.arena.capacity
    leaf = t.match(last)[0]
    t.pin(leaf)
    assert t.insert(whole, 1.0) is None
    t.unpin(leaf, 1.0)
    fill(t, whole)


def test_forgetting_drops_what_nobody_else_begins_with():
    t = tree()
    one, other = np.arange(30, dtype=np.int32), np.r_[np.arange(20), 70:80].astype(np.int32)
    fill(t, one)
    fill(t, np.r_[one, 90:95].astype(np.int32))  # goes on where the first ends
    fill(t, other)
    t.forget(one)
    t.check()
    assert t.match(one)[1] == 20 and t.resident(other)
    t.forget(other)
    t.check()
    assert not t.segments and t.arena.free_tokens == t.arena.capacity


@pytest.mark.parametrize("tokens", [ids(5, 6), ids(0, 1, 2, 9), ids(9), ids()])
def test_forgetting_what_is_not_there_changes_nothing(tokens):
    t = tree()
    fill(t, np.arange(12, dtype=np.int32))
    t.forget(tokens)
    t.check()
    assert t.resident(np.arange(12, dtype=np.int32))


def test_forgetting_waits_for_the_last_holder_and_minds_no_lease():
    t = tree()
    tokens = np.arange(30, dtype=np.int32)
    leaf = fill(t, tokens)
    t.lease(leaf, 30, 600.0)
    t.pin(leaf)
    t.pin(leaf)
    t.forget(tokens)
    assert t.resident(tokens)
    beside = t.insert(np.r_[np.arange(10), 50:55].astype(np.int32), 0.0)  # splits what is held
    t.check()
    t.unpin(leaf, 1.0)
    assert t.resident(tokens)
    t.unpin(leaf, 2.0)
    t.check()
    assert t.match(tokens)[1] == 10 and t.match(ids(*range(10), 50))[0] is beside


def test_what_is_wanted_again_is_not_dropped():
    t = tree()
    tokens = np.arange(30, dtype=np.int32)
    leaf = fill(t, tokens)
    t.pin(leaf)
    t.forget(tokens)
    t.pin(leaf)  # somebody new
    t.unpin(leaf, 1.0)
    t.unpin(leaf, 1.0)
    t.check()
    assert t.resident(tokens)


def test_forgetting_the_beginning_that_is_left_drops_it():
    """The end of a context may have been evicted."""
    t = tree()
    fill(t, np.arange(16, dtype=np.int32))
    t.forget(np.arange(40, dtype=np.int32))
    t.check()
    assert not t.segments


def test_forgetting_at_random_keeps_the_tree_whole():
    rng = np.random.default_rng(0)
    t, held = tree(24), []
    for _ in range(3000):
        tokens = rng.integers(0, 2, rng.integers(1, 24)).astype(np.int32)
        kind = rng.integers(0, 3)
        if kind == 0 and (leaf := t.insert(tokens, 0.0)) is not None:
            t.pin(leaf)
            held.append(leaf)
        elif kind == 1:
            t.forget(tokens)
        elif held:
            t.unpin(held.pop(rng.integers(len(held))), 0.0)
        t.check()
    for leaf in held:
        t.unpin(leaf, 0.0)
    t.check()
