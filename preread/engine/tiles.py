"""From a step to the work lists of the CUDA kernels: which rows see what, in tiles of equal kind.

Everything a kernel needs to know of a step is in a few int32 arrays, so a step costs one small copy
to the device, and a captured graph runs any later step of its size. Built without a loop over rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from preread.engine.step import Step
from preread.kernels.lists import Parts, Tail, Tiles
from preread.tokens.ragged import spread

if TYPE_CHECKING:
    from preread.types import Int32Array, Int64Array

LEAST_KEYS = 256  # a part is never smaller: below, merging it costs more than it saves


@dataclass(frozen=True, slots=True)
class Cuts:
    """Stretches of rows that see the same: rows [first[i], last[i]). Run j, of tokens[j] from
    slot[j] on, is seen by cut owner[j]; owners ascend."""

    first: Int64Array
    last: Int64Array
    owner: Int64Array
    slot: Int64Array
    tokens: Int64Array


def trees_of(step: Step) -> Int32Array | None:
    """`Tiles.trees`; None if a row's place in its tree of labels takes more than 64 bits."""
    if all(own.mask is None for own in step.own):
        return np.zeros((0, 3), np.int32)
    trees = np.zeros((len(step.tokens), 3), np.int64)
    trees[:, 0] = np.arange(1, len(trees) + 1)  # causal: all rows up to itself
    for own in step.own:
        if own.mask is None:
            continue
        length = own.mask.shape[1]
        stem = np.where(own.mask.all(2), length, own.mask.argmin(2))
        if (np.arange(length) - stem).max() >= 64:
            return None
        at = stem[..., None] + np.arange(64)
        seen = np.take_along_axis(own.mask, np.minimum(at, length - 1), 2) & (at < length)
        words = np.packbits(seen, axis=2, bitorder="little").view("<u4").astype(np.int64)
        columns = np.concatenate(((own.rows[:, :1] + stem)[..., None], words), axis=2)
        trees[own.rows[own.valid]] = columns[own.valid]
    return trees.astype(np.uint32).view(np.int32)


def cuts_of(step: Step, rows: Int64Array, breaks: Int64Array) -> Cuts:
    """Divide `rows` (ascending, at least one) where what they share changes, at gaps, and at
    `breaks`."""
    spans = np.array([(d.first, d.last) for d in step.dense], np.int64).reshape(-1, 2)
    gaps = np.flatnonzero(np.diff(rows) > 1)
    edges = np.concatenate((spans.ravel(), breaks, rows[gaps] + 1, rows[gaps + 1]))
    edges = edges[(edges > rows[0]) & (edges <= rows[-1])]
    edges = np.unique(np.concatenate((edges, [rows[0], rows[-1] + 1])))
    real = np.isin(edges[:-1], rows)
    first, last = edges[:-1][real], edges[1:][real]
    runs = [(i, *run) for i, d in enumerate(step.dense) for run in d.runs]
    dense, slot, tokens = np.array(runs, np.int64).reshape(-1, 3).T
    lo, hi = np.searchsorted(first, spans).T
    index, at = spread((hi - lo)[dense])
    owner = lo[dense[index]] + at
    order = np.argsort(owner, kind="stable")
    return Cuts(first, last, owner[order], slot[index][order], tokens[index][order])


def tiles_of(step: Step, size: int, trees: Int32Array) -> Tiles[Int32Array] | None:
    """Tiles of at most `size` tokens over the rows that are read; None if there are none."""
    if not step.own:
        return None
    starts = np.zeros(len(step.tokens), np.int32)
    for own in step.own:
        starts[own.rows[own.valid]] = np.broadcast_to(own.rows[:, :1], own.rows.shape)[own.valid]
    rows = np.sort(np.concatenate([own.rows[own.valid] for own in step.own]))
    past = np.array([(h.first, h.last, h.length) for h in step.history], np.int64).reshape(-1, 3)
    cuts = cuts_of(step, rows, past[:, :2].ravel())
    table = np.zeros(
        (max(len(past), 1), max((len(h.pages) for h in step.history), default=1)), np.int32
    )
    for i, h in enumerate(step.history):
        table[i, : len(h.pages)] = h.pages
    owner, at = spread(-(-(cuts.last - cuts.first) // size))
    begun = np.searchsorted(cuts.first, past[:, 0])
    history, length = np.zeros((2, len(cuts.first)), np.int64)
    history[begun], length[begun] = np.arange(len(past)), past[:, 2]
    first = cuts.first[owner] + at * size
    tiles = np.stack((
        first, np.minimum(size, cuts.last[owner] - first),
        np.searchsorted(cuts.owner, owner), np.searchsorted(cuts.owner, owner, side="right"),
        history[owner], length[owner],
    ), axis=1)  # fmt: skip
    runs = np.stack((cuts.slot, cuts.tokens), axis=1)
    return Tiles(tiles.astype(np.int32), runs.astype(np.int32), starts, trees, table)


def tail_of(step: Step) -> Tail[Int32Array] | None:
    """The decoding rows; `counts` are zeros until `parts_of`."""
    if (decode := step.decode) is None:
        return None
    order = np.argsort(decode.rows, kind="stable")
    return Tail(
        decode.rows[order].astype(np.int32),
        np.zeros(len(order), np.int32),
        decode.lengths[order].astype(np.int32),
        decode.table[order].astype(np.int32),
    )


def parts_of(
    step: Step, tail: Tail[Int32Array], size: int, programs: int, most: int
) -> Parts[Int32Array] | None:
    """What the decoding rows share, as items of at most `size` rows, with the keys split so that
    there are about `programs` of them and no row has more than `most` parts; None where a row sees
    more runs than that. Writes tail.counts."""
    cuts = cuts_of(step, tail.rows.astype(np.int64), np.empty(0, np.int64))
    need = -(-(cuts.last - cuts.first) // size)
    keys = _split(cuts, int((need[cuts.owner] * cuts.tokens).sum()) // max(programs, 1), most)
    if not keys:
        return None
    run, at = spread(-(-cuts.tokens // keys))
    owner = cuts.owner[run]
    part = np.arange(len(run)) - np.searchsorted(owner, owner)
    place = np.searchsorted(tail.rows, cuts.first)
    counts = np.bincount(owner, minlength=len(need))
    tail.counts[:] = np.repeat(counts, cuts.last - cuts.first)
    piece, tile = spread(need[owner])
    owner, run, at = owner[piece], run[piece], at[piece] * keys
    first = tile * size
    items = np.stack((
        cuts.first[owner] + first, np.minimum(size, (cuts.last - cuts.first)[owner] - first),
        place[owner] + first, cuts.slot[run] + at, np.minimum(keys, cuts.tokens[run] - at),
        part[piece],
    ), axis=1)  # fmt: skip
    return Parts(items.astype(np.int32))


def _split(cuts: Cuts, keys: int, most: int) -> int:
    """How many keys a part has, at least `keys`; 0 if some row has more than `most` runs."""
    keys = -(-max(LEAST_KEYS, keys) // 64) * 64
    while len(cuts.owner):
        if np.bincount(cuts.owner, -(-cuts.tokens // keys)).max() <= most:
            break
        if keys > cuts.tokens.max():
            return 0
        keys *= 2
    return keys
