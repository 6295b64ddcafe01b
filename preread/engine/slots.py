"""The memory of an arena on a CPU as bytes, for what is read or copied straight to its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.engine.arena import Cell, Run


class Rows(NamedTuple):
    """All slots of a cell. whole: [layers, 2, heads, bytes]; each: its rows, one by one."""

    whole: NDArray[np.uint8]
    each: list[memoryview]


class Bytes:
    """values: [layers, 2, heads, slots, head_dim]; token: bytes of one head of one slot. Whoever
    writes must hold the slots."""

    def __init__(self, values: NDArray[np.uint8], token: int) -> None:
        self._values = values
        self._token = token
        self._rows: dict[Cell, Rows] = {}

    def slots(self, runs: list[Run], cell: Cell) -> Slots:
        """Any thread."""
        if (rows := self._rows.get(cell)) is None:
            i, j, g, h = cell
            whole = self._values[i:j, :, g:h]
            each = [head.data for layer in whole for side in layer for head in side]
            rows = self._rows[cell] = Rows(whole, each)
        token = self._token
        ends = [(slot * token, (slot + tokens) * token) for slot, tokens in runs]
        return Slots(rows, ends)


@dataclass(frozen=True, slots=True)
class Slots:
    """Of one cell, these bytes [a, b) of each row; see store.arriving.Slots."""

    rows: Rows
    ends: list[tuple[int, int]]

    def pieces(self) -> list[memoryview]:
        return [row[a:b] for row in self.rows.each for a, b in self.ends]

    def fill(self, payload: memoryview) -> None:
        """In one call for each run, which gives up the interpreter's lock: two threads can copy."""
        whole, at = self.rows.whole, 0
        flat = np.frombuffer(payload, np.uint8).reshape(*whole.shape[:3], -1)
        for a, b in self.ends:
            whole[..., a:b] = flat[..., at : at + b - a]
            at += b - a
        assert at == flat.shape[-1], "a payload of another size"
