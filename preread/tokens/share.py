"""What the rows of a batch share beyond what they say they share: found by comparing tokens.

Rows whose next WINDOW tokens are equal form a group, which is followed to its first differing
token; then its rows are divided again by what comes next (nested groups). Exact, and vectorised
over rows; the work is proportional to the tokens that are shared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from preread.backend import Ragged
from preread.tokens.batch import LikelihoodSpec, TokenBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preread.types import Int32Array, Int64Array

WINDOW = 32  # tokens; shorter common beginnings are not looked for
MIN_GAIN = 64  # tokens saved below which a group costs more than it gives
CELLS = 1 << 24  # most tokens compared at once


def share(batch: TokenBatch, private_tokens: int) -> TokenBatch:
    """The same rows with longer common beginnings. A row whose own part is still `private_tokens`
    or longer gets a beginning of its own, so that its KV lies in the prefix arena. With reuse
    False only the latter."""
    own = batch.own
    lengths = np.diff(own.offsets)
    tail = batch.spec.counts + 1 if isinstance(batch.spec, LikelihoodSpec) else 1
    usable = np.maximum(lengths - tail, 0)
    gain = np.zeros(len(batch), np.int64)
    leader = np.full(len(batch), -1, np.int64)
    for rows in _starts(batch) if batch.reuse else ():
        for group, depth in _common(own, usable, rows):
            gain[group], leader[group] = depth, group[0]
    alone = usable - gain >= private_tokens
    gain[alone], leader[alone] = usable[alone], np.flatnonzero(alone)
    return _regrouped(batch, gain, leader) if (gain > 0).any() else batch


def _starts(batch: TokenBatch) -> Iterator[Int64Array]:
    """Rows that stand at one place: same group, same base."""
    place = np.stack([batch.group_of, batch.base], axis=1)
    _, which = np.unique(place, axis=0, return_inverse=True)
    yield from _parts(np.arange(len(batch)), which.ravel())


def _parts(rows: Int64Array, which: Int64Array) -> Iterator[Int64Array]:
    """Rows by label, where two or more have it."""
    order = np.argsort(which, kind="stable")
    sizes = np.bincount(which)
    ends = np.cumsum(sizes)
    for label in np.flatnonzero(sizes > 1).tolist():
        yield rows[order[ends[label] - sizes[label] : ends[label]]]


def _common(own: Ragged, usable: Int64Array, rows: Int64Array) -> Iterator[tuple[Int64Array, int]]:
    """(rows, tokens) of every group, longer ones after those that contain them."""
    todo = [(rows, 0)]
    while todo:
        rows, depth = todo.pop()
        rows = rows[usable[rows] >= depth + WINDOW]
        if len(rows) < 2:
            continue
        window = _window(own, rows, depth, WINDOW)
        _, which = np.unique(window.view(f"V{4 * WINDOW}").ravel(), return_inverse=True)
        for group in _parts(rows, which.ravel()):
            end = _follow(own, group, depth + WINDOW, int(usable[group].min()))
            if (len(group) - 1) * (end - depth) >= MIN_GAIN:
                yield group, end
                todo.append((group, end))


def _follow(own: Ragged, rows: Int64Array, depth: int, limit: int) -> int:
    """Where the rows, equal up to `depth`, first differ; at most `limit`."""
    width = 64
    while depth < limit:
        width = min(width, limit - depth)
        first = own.row(int(rows[0]))[depth : depth + width]
        equal = np.ones(width, bool)
        for some in np.array_split(rows, 1 + len(rows) * width // CELLS):
            equal &= (_window(own, some, depth, width) == first).all(0)
        if not equal.all():
            return depth + int(equal.argmin())
        depth += width
        width *= 2
    return depth


def _window(own: Ragged, rows: Int64Array, depth: int, width: int) -> Int32Array:
    """[rows, width] tokens from `depth` on; all rows are that long."""
    window: Int32Array = own.values[(own.offsets[rows] + depth)[:, None] + np.arange(width)]
    return window


def _regrouped(batch: TokenBatch, gain: Int64Array, leader: Int64Array) -> TokenBatch:
    """Move the first gain[i] own tokens of row i into a group named by (leader, gain)."""
    own, moved = batch.own, np.flatnonzero(gain)
    names, which = np.unique(
        np.stack([leader[moved], gain[moved]], axis=1), axis=0, return_inverse=True
    )
    groups = list(batch.groups)
    for row, depth in names.tolist():
        number = int(batch.group_of[row])
        head = batch.groups[number][: batch.base[row]] if number >= 0 else own.values[:0]
        groups.append(np.concatenate((head, own.row(row)[:depth])))
    group_of, base = batch.group_of.copy(), (batch.base + gain).astype(np.int32)
    group_of[moved] = len(batch.groups) + which.ravel()
    lengths = np.diff(own.offsets)
    first = np.repeat(own.offsets[:-1] + gain, lengths)
    kept = own.values[np.arange(len(own.values)) >= first]
    offsets = np.concatenate(([0], np.cumsum(lengths - gain)))
    return replace(batch, own=Ragged(kept, offsets), groups=groups, group_of=group_of, base=base)
