"""Finding what rows share: exact, nested, and the same prompts come out."""

from __future__ import annotations

import numpy as np
import pytest

from preread.tokens.batch import LikelihoodSpec
from preread.tokens.share import share
from tests.engine.helpers import batch

MAKE = np.random.default_rng(1)


def text(n: int) -> list[int]:
    return MAKE.integers(0, 256, n).tolist()


def prompts(b) -> list[list[int]]:
    heads = [*b.groups, np.empty(0, np.int32)]
    return [
        [*heads[b.group_of[i]][: b.base[i]].tolist(), *b.own.row(i).tolist()] for i in range(len(b))
    ]


def test_interleaved_and_nested_groups():
    a, b, c = text(200), text(150), text(100)
    a2 = a + text(90)
    rows = [a2 + text(5), b + text(7), a + text(3), c[:20], b + text(1), a2 + text(9), text(40), b]
    got = share(batch(rows), 512)
    assert prompts(got) == rows
    assert got.base.tolist() == [290, 149, 200, 0, 149, 290, 0, 149]
    assert got.group_of[0] == got.group_of[5] != got.group_of[2]
    assert sorted(len(g) for g in got.groups) == [149, 200, 290]


def test_one_token_always_stays_its_own():
    row = text(300)
    got = share(batch([row, row, row]), 512)
    assert got.base.tolist() == [299] * 3
    assert prompts(got) == [row] * 3


def test_small_gains_are_left_alone():
    head = text(40)
    assert share(batch([head + text(3), head + text(3)]), 512).groups == []
    got = share(batch([head + text(3) for _ in range(3)]), 512)
    assert got.base.tolist() == [40] * 3


def test_groups_that_are_given_are_extended():
    book, more = text(50), text(80)
    own = [more + text(4), more + text(4), text(9)]
    got = share(batch(own, prefixes=[book]), 512)
    assert got.base.tolist() == [130, 130, 50]
    assert prompts(got) == [book + o for o in own]
    part = share(batch(own, prefixes=[book], base=[50, 49, 50]), 512)
    assert part.base.tolist() == [50, 49, 50], "rows at different places share nothing more"


def test_long_rows_of_their_own_go_to_the_arena():
    rows = [text(600), text(100)]
    got = share(batch(rows), 512)
    assert got.base.tolist() == [599, 0]
    assert prompts(got) == rows
    alone = share(batch([rows[0], rows[0]], reuse=False), 512)
    assert alone.group_of.tolist() == [0, 1], "without reuse nothing is shared"


def test_a_continuation_is_never_shared():
    head, tail = text(200), text(100)
    spec = LikelihoodSpec(np.array([100, 90], np.int32))
    got = share(batch([head + tail, head + tail[:90]], spec), 512)
    assert got.base.tolist() == [199, 199]


@pytest.mark.parametrize("seed", range(6))
def test_any_batch_keeps_its_prompts_and_equal_beginnings_meet(seed):
    make = np.random.default_rng(seed)
    heads = [make.integers(0, 3, make.integers(1, 150)).tolist() for _ in range(4)]
    rows = [
        heads[make.integers(4)][: make.integers(1, 150)]
        + make.integers(0, 3, make.integers(1, 90)).tolist()
        for _ in range(60)
    ]
    got = share(batch(rows), 100)
    assert prompts(got) == rows
    assert (np.diff(got.own.offsets) >= 1).all()
    for i in range(60):
        head = got.groups[got.group_of[i]][: got.base[i]].tolist() if got.group_of[i] >= 0 else []
        assert rows[i][: len(head)] == head
