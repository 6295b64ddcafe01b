"""The work lists of the attention kernels: what a step is, in a few int32 arrays."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

A = TypeVar("A")  # numpy arrays on the host, torch tensors on the device


class Tiles(NamedTuple, Generic[A]):
    """Rows that are read. tiles [n, 6]: first row, rows, first and last run, row of the table,
    tokens of history. runs [m, 2]: slot, tokens. starts [T]: where a row's own stretch begins; it
    sees what follows up to itself or, where trees [T, 3] is not empty, all rows before trees[r, 0]
    and of those from there on the ones whose bit is set in the other two columns. table [h, width]:
    pages of histories."""

    tiles: A
    runs: A
    starts: A
    trees: A
    table: A


class Parts(NamedTuple, Generic[A]):
    """Shared keys of decoding rows. items [n, 6]: first row, rows, its place among the decoding
    rows, slot, tokens (0: nothing to do), part."""

    items: A


class Tail(NamedTuple, Generic[A]):
    """Decoding rows [B]: row of the step, parts to begin with, own tokens; table [B, width]: their
    pages."""

    rows: A
    counts: A
    lengths: A
    table: A
