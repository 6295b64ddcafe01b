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
from preread.tokens.ragged import lengths, picked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preread.types import Int32Array, Int64Array

WINDOW = 32  # tokens; shorter common beginnings are not looked for
MIN_GAIN = 64  # tokens saved below which a group costs more than it gives
CELLS = 1 << 17  # most tokens compared at once: they stay in the cache


def share(batch: TokenBatch, private_tokens: int) -> TokenBatch:
    """The same rows with longer common beginnings. A row whose own part is still `private_tokens`
    or longer gets a beginning of its own, so that its KV lies in the prefix arena. With reuse
    False only the latter."""
    own = Ragged(np.ascontiguousarray(batch.own.values), batch.own.offsets)
    tail = batch.spec.counts + 1 if isinstance(batch.spec, LikelihoodSpec) else 1
    usable = np.maximum(lengths(own) - tail, 0)
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
    width = int(batch.base.max(initial=0)) + 1
    place = (batch.group_of.astype(np.int64) + 1) * width + batch.base
    _, which = np.unique(place, return_inverse=True)
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
    width = 256
    while depth < limit:
        width = min(width, limit - depth)
        first = own.row(int(rows[0]))[depth : depth + width]
        equal = np.ones(width, bool)
        block = max(1, CELLS // width)
        for lo in range(0, len(rows), block):
            equal &= (_window(own, rows[lo : lo + block], depth, width) == first).all(0)
        if not equal.all():
            return depth + int(equal.argmin())
        depth += width
        width *= 2
    return depth


def _window(own: Ragged, rows: Int64Array, depth: int, width: int) -> Int32Array:
    """[rows, width] tokens from `depth` on; all rows are that long."""
    values = own.values
    # All windows of the values, as a view (sliding_window_view is that too, and takes 30 us).
    shape = (len(values) - width + 1, width)
    windows = np.ndarray(shape, values.dtype, values, 0, values.strides * 2)
    window: Int32Array = windows[own.offsets[rows] + depth]
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
    kept = picked(own, np.arange(len(batch)), gain)
    return replace(batch, own=kept, groups=groups, group_of=group_of, base=base)
