"""Which stretches are gathered, and that it changes nothing but time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from preread.engine import gathering
from preread.engine.engine import Engine
from preread.engine.gathering import by_config, by_cost, by_rows
from preread.engine.kv import KVShape
from preread.engine.step import Step
from preread.testing.models import greedy as recomputed
from tests.engine.helpers import SMALL, batch, greedy, run

SMALL_MODEL, LARGE_MODEL = 512, 8192  # bytes of a token in one layer


def picked(gathers, rows, sizes) -> list[bool]:
    return gathers(np.array(rows, np.int64), np.array(sizes, np.int64)).tolist()


@pytest.mark.parametrize(
    ("token_bytes", "count", "rows", "tokens", "want"),
    [
        # as measured on a CPU, where one road takes at least 1.2 times as long as the other
        (SMALL_MODEL, 8, 1, 128, True),
        (SMALL_MODEL, 32, 1, 256, True),
        (SMALL_MODEL, 8, 1, 1024, False),
        (SMALL_MODEL, 2, 1, 256, False),
        (SMALL_MODEL, 8, 2, 32, True),
        (SMALL_MODEL, 8, 2, 256, False),
        (SMALL_MODEL, 32, 4, 16, True),
        (LARGE_MODEL, 8, 1, 128, False),
        (LARGE_MODEL, 32, 1, 8, True),
        (LARGE_MODEL, 4, 4, 16, False),
    ],
)
def test_the_quicker_road(token_bytes, count, rows, tokens, want):
    assert picked(by_cost(token_bytes), [rows] * count, [tokens] * count) == [want] * count


def test_there_is_nothing_to_gather_in_one_stretch():
    for gathers in (by_cost(SMALL_MODEL), by_rows(2)):
        assert picked(gathers, [], []) == []
        assert picked(gathers, [1], [16]) == [False]
        assert picked(gathers, [1, 1], [16, 4000]) == [False, False]


def test_a_long_stretch_does_not_keep_short_ones_apart():
    sizes = [20, 3000, 25, 18, 30, 22]
    assert picked(by_cost(SMALL_MODEL), [1] * 6, sizes) == [n < 3000 for n in sizes]


@pytest.mark.parametrize("seed", range(10))
def test_no_other_choice_of_the_shortest_would_be_quicker(seed):
    make = np.random.default_rng(seed)
    n = int(make.integers(2, 12))
    rows, sizes = make.integers(1, 4, n), np.sort(make.integers(1, 500, n))

    def cost(first: int) -> float:
        """Of gathering the first so many."""
        width = int(sizes[:first].max(initial=0)) * SMALL_MODEL
        common = gathering.ROW + width * gathering.COPIED
        apart = gathering.CALL + sizes[first:] * SMALL_MODEL * gathering.READ
        together = gathering.GATHER + rows[:first].sum() * common if first else 0.0
        return float(together + apart.sum())

    chosen = sum(picked(by_cost(SMALL_MODEL), rows, sizes))
    assert cost(chosen) == min(cost(first) for first in range(n + 1) if first != 1)


def test_by_rows():
    assert picked(by_rows(2), [1, 1, 2, 1], [16, 256, 16, 257]) == [True, True, False, False]
    assert picked(by_rows(1), [1, 1], [16, 16]) == [False, False]


@pytest.mark.parametrize(
    ("device", "min_rows", "fast", "want"),
    [
        ("cpu", 0, False, [True, True, True]),  # by cost
        ("cpu", 2, False, [True, True, False]),
        ("cuda", 0, False, [True, True, False]),  # no cost is known: what one row sees
        ("cuda", 3, False, [True, True, True]),
        ("cuda", 3, True, [False, False, False]),  # the kernel takes them all in one call
    ],
)
def test_by_config(device, min_rows, fast, want):
    shape = KVShape(4, 2, 64, torch.float32, torch.device(device))
    config = replace(SMALL, shared_min_rows=min_rows)
    assert picked(by_config(config, shape, fast=fast), [1, 1, 2], [16, 16, 16]) == want


@pytest.mark.parametrize("most", [0, 40, 10**9])
def test_whatever_is_gathered_the_answers_are_the_same(decoder, monkeypatch, most):
    """Nothing, some, all of what single rows see: nested prefixes of several lengths."""
    monkeypatch.setattr("preread.engine.gathering.by_cost", lambda _: lambda rows, n: n <= most)
    make = np.random.default_rng(2)
    trunk = make.integers(0, 256, 40).tolist()
    books = [trunk[: 8 * i] + make.integers(0, 256, 5 + 9 * i).tolist() for i in range(6)]
    own, which = [[1, 2], [3], [4, 5, 6]] * 4, [i % 6 for i in range(12)]
    engine = Engine(decoder, SMALL)
    steps: list[Step] = []
    pack = engine._scheduler._packer.pack
    engine._scheduler._packer.pack = lambda *args: steps.append(pack(*args)) or steps[-1]
    (got,) = run(engine, batch(own, greedy(15), prefixes=books, prefix_of=which))
    want = recomputed(decoder, [books[w] + o for w, o in zip(which, own, strict=True)], 15)
    assert got.rows() == want
    decodes = [s for s in steps if s.decode is not None and len(s.decode.rows) == 12]
    assert decodes
    for step in decodes:
        gathers, apart = step.gather is not None, bool(step.dense)
        assert (gathers, apart) == (most > 0, most < 100)
