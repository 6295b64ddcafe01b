"""The kernels' work lists say of every row exactly what the step says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from preread.engine.engine import Engine
from preread.engine.runner import Runner
from preread.engine.step import Step
from preread.engine.tiles import parts_of, tail_of, tiles_of, trees_of
from preread.tokens.batch import ChooseSpec, LikelihoodSpec
from preread.tokens.labels import label_trie
from tests.engine.helpers import SMALL, batch, drain, greedy

Seen = list[Counter[tuple[str, int]]]


def by_step(step: Step, page_tokens: int) -> Seen:
    """The slow twin: keys of every row, one by one."""
    seen: Seen = [Counter() for _ in step.tokens]
    for own in step.own:
        for b, rows in enumerate(own.rows):
            for i in np.flatnonzero(own.valid[b]):
                keys = range(i + 1) if own.mask is None else np.flatnonzero(own.mask[b, i])
                seen[rows[i]].update(("row", int(rows[j])) for j in keys)
    for dense in step.dense:
        for row in range(dense.first, dense.last):
            seen[row].update(("arena", s + i) for s, n in dense.runs for i in range(n))
    for past in step.history:
        for row in range(past.first, past.last):
            seen[row].update(_pages(past.pages, past.length, page_tokens))
    if (decode := step.decode) is not None:
        for row, table, length in zip(decode.rows, decode.table, decode.lengths, strict=True):
            seen[row].update(_pages(table, length, page_tokens))
    return seen


def by_lists(step: Step, page_tokens: int, size: int, most: int) -> Seen:
    seen: Seen = [Counter() for _ in step.tokens]
    trees = trees_of(step)
    assert trees is not None
    tiles = tiles_of(step, size, trees)
    for first, count, run_, last, history, past in [] if tiles is None else tiles.tiles.tolist():
        assert tiles is not None and 0 < count <= size
        for row in range(first, first + count):
            seen[row].update(
                ("arena", s + i) for s, n in tiles.runs[run_:last].tolist() for i in range(n)
            )
            seen[row].update(_pages(tiles.table[history], past, page_tokens))
            seen[row].update(("row", key) for key in _own(tiles.starts, trees, row, first + count))
    if (tail := tail_of(step)) is not None:
        parts = parts_of(step, tail, size, 8, most)
        assert parts is not None
        told: dict[int, set[int]] = {}
        for first, count, place, slot, tokens, part in parts.items.tolist():
            assert tail.rows[place] == first and tail.rows[place + count - 1] == first + count - 1
            for i in range(count):
                assert part not in told.setdefault(place + i, set())
                told[place + i].add(part)
                seen[first + i].update(("arena", slot + j) for j in range(tokens))
        for b, (row, count, length) in enumerate(
            zip(tail.rows.tolist(), tail.counts.tolist(), tail.lengths.tolist(), strict=True)
        ):
            assert told.get(b, set()) == set(range(count)) and count <= most
            seen[row].update(_pages(tail.table[b], length, page_tokens))
    return seen


def _pages(pages: np.ndarray, length: int, page_tokens: int) -> list[tuple[str, int]]:
    return [
        ("page", int(pages[i // page_tokens]) * page_tokens + i % page_tokens)
        for i in range(length)
    ]


def _own(starts: np.ndarray, trees: np.ndarray, row: int, end: int) -> list[int]:
    """As the kernel decides it."""
    if not len(trees):
        return list(range(starts[row], row + 1))
    stem, low, high = (int(x) & 0xFFFFFFFF for x in trees[row])
    bits = low | high << 32
    return [
        k for k in range(starts[row], end)
        if k < stem or (k - stem < 64 and bits >> (k - stem) & 1)
    ]  # fmt: skip


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every step that an engine runs."""
    ran: list[Step] = []
    true = Runner.launch

    def spy(self, step):
        ran.append(step)
        return true(self, step)

    monkeypatch.setattr(Runner, "launch", spy)
    return ran


def mixed(engine: Engine) -> None:
    """Prefixes nested and apart, long and short rows, labels of several tokens, all at once."""
    rng = np.random.default_rng(3)

    def text(n: int) -> list[int]:
        return rng.integers(1, 250, n).tolist()

    head = text(60)
    prefixes = [head, head[:30] + text(25), text(40)]
    own = [text(n) for n in (3, 9, 150, 1, 2, 17, 30, 5)]
    labels = label_trie([[5, 6, 7], [5, 9], [8], [5, 6, 4, 3]])
    engine.submit(batch(own, greedy(9), prefixes=prefixes, prefix_of=[0, 1, 2, 0, 1, 2, 0, -1]))
    for _ in range(3):
        engine.step()
    engine.submit(batch(own[:4], ChooseSpec(labels), prefixes=prefixes, prefix_of=[0, 1, 1, -1]))
    counts = np.ones(3, np.int32)
    engine.submit(batch(own[4:7], LikelihoodSpec(counts), prefixes=prefixes, prefix_of=[2, 2, 0]))
    drain(engine)


@pytest.mark.parametrize(("size", "most"), [(2, 4), (7, 64), (64, 16)])
def test_rows_see_what_the_step_says(steps, decoder, size, most):
    engine = Engine(decoder, replace(SMALL, shared_min_rows=1, batch_tokens=96))
    mixed(engine)
    assert any(s.decode is not None and s.own for s in steps), "decoding and reading in one step"
    assert any(s.history for s in steps) and any(len(s.dense) > 2 for s in steps)
    assert any(own.mask is not None for s in steps for own in s.own)
    for step in steps:
        assert step.gather is None
        want = by_step(step, SMALL.page_tokens)
        assert by_lists(step, SMALL.page_tokens, size, most) == want
