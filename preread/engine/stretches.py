"""Which tokens of a prompt stand in others that were read already, and where.

By tokens alone, not by text: where two texts meet, a tokenizer may cut them in another way, and
what is then not found is computed like anything new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from preread.engine.prefix import common

if TYPE_CHECKING:
    from preread.types import Int32Array, Int64Array

WINDOW = 16  # tokens; shorter finds are chance, and not worth their seams
TRIED = 64  # places of one window that are followed to their ends


class Stretch(NamedTuple):
    """Tokens [at, at + tokens) of a prompt are tokens [start, start + tokens) of part `part`."""

    at: int
    part: int
    start: int
    tokens: int


def stretches(whole: Int32Array, parts: Sequence[Int32Array], begin: int) -> list[Stretch]:
    """What of whole[begin:] stands in the parts, in the order of `whole`, none twice: in the first
    part that has it, each time the longest run (of at least WINDOW tokens) from the first token
    that begins one."""
    found: list[Stretch] = []
    gaps = [(begin, len(whole))]
    for number, part in enumerate(parts):
        mine = [s for lo, hi in gaps for s in _matches(whole, lo, hi, part, number)]
        found = sorted([*found, *mine])
        gaps = list(_between(found, begin, len(whole)))
    return found


def stretches_slow(whole: Int32Array, part: Int32Array, begin: int) -> list[Stretch]:
    """The same of one part, by trying every place."""
    found, at = [], begin
    while at < len(whole):
        runs = [(common(whole[at:], part[i:]), -i) for i in range(len(part))]
        tokens, start = max(runs, default=(0, 0))
        if tokens >= WINDOW:
            found.append(Stretch(at, 0, -start, tokens))
            at += tokens
        else:
            at += 1
    return found


def _between(found: Sequence[Stretch], begin: int, end: int) -> list[tuple[int, int]]:
    """What no stretch covers."""
    edges = [begin, *(edge for s in found for edge in (s.at, s.at + s.tokens)), end]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def _matches(whole: Int32Array, lo: int, hi: int, part: Int32Array, number: int) -> list[Stretch]:
    """Of whole[lo:hi] in one part."""
    if min(hi - lo, len(part)) < WINDOW:
        return []
    here, there = _hashes(whole[lo:hi]), _hashes(part)
    order = np.argsort(there, kind="stable")
    first = np.searchsorted(there[order], here, side="left")
    last = np.searchsorted(there[order], here, side="right")
    known = np.flatnonzero(first < last)
    found, at = [], 0
    while (i := int(np.searchsorted(known, at))) < len(known):
        at = int(known[i])
        places = order[first[at] : last[at]][:TRIED].tolist()
        runs = [(common(whole[lo + at : hi], part[place:]), -place) for place in places]
        tokens, start = max(runs)
        if tokens >= WINDOW:  # else the hashes alone were equal
            found.append(Stretch(lo + at, number, -start, tokens))
        at += max(tokens, 1) if tokens >= WINDOW else 1
    return found


def _hashes(tokens: Int32Array) -> Int64Array:
    """A number for every window, equal for equal windows; a polynomial modulo 2^64."""
    weights = np.cumprod(np.full(WINDOW, 0x9E3779B97F4A7C15, np.uint64), dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.uint64), WINDOW)
    hashes: Int64Array = (windows * weights).sum(-1, dtype=np.uint64).view(np.int64)
    return hashes
