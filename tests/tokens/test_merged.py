"""News of a batch as one result: the same as adding them up row by row."""

from __future__ import annotations

import numpy as np
import pytest

from preread.backend import Ragged, ResultBatch
from preread.tokens.merged import merged
from preread.types import Finish

ROWS = 7


def news(make: np.random.Generator, alive: list[int], kind: str) -> ResultBatch:
    rows = make.permutation(alive)[: make.integers(1, len(alive) + 1)]
    n, sizes = len(rows), make.integers(0, 3, len(rows))
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    ended = make.random(n) < 0.3
    return ResultBatch(
        rows=rows.astype(np.int32),
        texts=[str(make.integers(9)) * int(size) for size in sizes],
        tokens=Ragged(make.integers(0, 99, offsets[-1]).astype(np.int32), offsets),
        finish=[Finish.STOP if end else None for end in ended],
        usage=make.integers(0, 9, (n, 4)).astype(np.int32),
        times=make.random((n, 3)).astype(np.float32),
        logprobs=make.random(offsets[-1]).astype(np.float32) if kind == "logprobs" else None,
        label_probs=make.random((n, 2)).astype(np.float32) if kind == "choose" else None,
        mass=make.random(n).astype(np.float32) if kind == "choose" else None,
        is_greedy=(make.random(n) < 0.5).tolist() if kind == "logprobs" else None,
        written=make.integers(0, 9, n).astype(np.int32) if make.random() < 0.7 else None,
        errors={int(row): f"no {row}" for row, end in zip(rows, ended, strict=True) if end},
    )


@pytest.mark.parametrize("kind", ["plain", "logprobs", "choose"])
@pytest.mark.parametrize("seed", range(5))
def test_as_row_by_row(kind, seed):
    make, alive, parts = np.random.default_rng(seed), list(range(ROWS - 1)), []
    while alive:
        parts.append(news(make, alive, kind))
        ended = {int(r) for r, f in zip(parts[-1].rows, parts[-1].finish, strict=True) if f}
        alive = [row for row in alive if row not in ended]
    got = merged(parts, ROWS)
    for row in range(ROWS):
        mine = [(p, int(np.flatnonzero(p.rows == row)[0])) for p in parts if row in p.rows]
        assert got.texts[row] == "".join(p.texts[j] for p, j in mine)
        assert got.tokens.row(row).tolist() == [t for p, j in mine for t in p.tokens.row(j)]
        if not mine:
            assert got.finish[row] is None and not got.usage[row].any()
            continue
        last, j = mine[-1]
        assert got.finish[row] == last.finish[j] and (got.usage[row] == last.usage[j]).all()
        assert (got.times[row] == last.times[j]).all() and got.errors[row] == f"no {row}"
        if got.written is not None:
            assert got.written[row] == (0 if last.written is None else last.written[j])
        else:
            assert all(p.written is None for p in parts)
        if kind == "choose":
            assert (got.label_probs[row] == last.label_probs[j]).all()
            assert got.mass[row] == last.mass[j]
        if kind == "logprobs":
            want = [p.logprobs[slice(*p.tokens.offsets[j : j + 2])] for p, j in mine]
            mine_now = got.logprobs[slice(*got.tokens.offsets[row : row + 2])]
            assert mine_now.tolist() == np.concatenate(want).tolist()
            assert got.is_greedy[row] == last.is_greedy[j]


def test_of_nothing():
    assert len(merged([], 0).rows) == 0 and merged([], 2).finish == [None, None]
