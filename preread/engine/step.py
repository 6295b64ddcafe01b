"""One step: rows of many sequences packed on one axis without padding, and what each attends to.

Rows lie in this order: the chunks of prefixes being read, then the sequences by branch (so that
sequences with a common beginning are neighbours), each with its next own tokens in order and, for a
`choose` row at its end, the inner nodes of the label trie. All arrays are numpy, on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from preread.engine.arena import Run
from preread.engine.segment import Segment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from preread.engine.layers import Layers
    from preread.types import Int32Array, Int64Array


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of a prefix: [base, base + len(tokens)) of the path to `leaf`. path: where
    what comes before lies; runs: where their KV goes."""

    leaf: Segment
    base: int
    tokens: Int32Array
    path: tuple[Run, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Dense:
    """Rows [first, last) see all tokens in `runs`."""

    first: int
    last: int
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Gather:
    """Row rows[i] sees the arena slots[i, :lengths[i]]."""

    rows: Int64Array
    slots: Int64Array
    lengths: Int64Array


@dataclass(frozen=True, slots=True)
class Own:
    """Stretches of new tokens that see themselves: rows[b, j], stretch b padded by its last row
    to a common length; valid[b, j] marks the real ones; mask [B, L, L] replaces causality."""

    rows: Int64Array
    valid: NDArray[np.bool_]
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True)
class History:
    """Rows [first, last) see the first `length` tokens in `pages`."""

    first: int
    last: int
    pages: Int32Array
    length: int


@dataclass(frozen=True, slots=True)
class Decode:
    """Row rows[i] sees the first lengths[i] tokens in the pages table[i], itself included."""

    rows: Int64Array
    table: Int64Array
    lengths: Int64Array


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probabilities to read off: of target targets[i] at row rows[i], for place (slot, at)."""

    rows: Int64Array
    targets: Int64Array
    slots: Int64Array
    at: Int64Array


@dataclass(slots=True)
class Step:
    """tokens, positions: [T]. slots, counts: sequences in packing order and their own new tokens.
    write_rows -> write_slots: KV that goes to pages (slot = page * page_tokens + offset);
    chunks[i] are rows [chunk_rows[i], chunk_rows[i] + its length). sample_rows: the row that
    decides the next token of sample_slots. layers: where the prefix that they see is still
    coming."""

    tokens: Int64Array
    positions: Int64Array
    slots: Int64Array
    counts: Int64Array
    write_rows: Int64Array
    write_slots: Int64Array
    sample_rows: Int64Array
    sample_slots: Int64Array
    score: Score
    chunks: tuple[Chunk, ...] = ()
    chunk_rows: tuple[int, ...] = ()
    dense: list[Dense] = field(default_factory=list)
    gather: Gather | None = None
    own: list[Own] = field(default_factory=list)
    history: list[History] = field(default_factory=list)
    decode: Decode | None = None
    layers: Layers | None = None
