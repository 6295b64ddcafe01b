"""Two roads for stretches of the tree that few rows see: a call for each, or one call for all over
copies of their keys. Which is quicker is a matter of what calls and copies cost.

Measured on a CPU (docs/log.md): the costs below choose within 2 % of the better road, in the mean
over four models, two types, one and two threads, 2 to 32 stretches of 8 to 1,024 tokens. Timing
them anew at every start does no better on a quiet machine, and on a busy one it goes wrong by
orders of magnitude and stays so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.config import EngineSection
    from preread.engine.kv import KVShape
    from preread.types import Int64Array

# Microseconds: a call on one stretch; a gathered call, and each row in it.
CALL, GATHER, ROW = 60.0, 110.0, 3.0
READ, COPIED = 0.15e-3, 0.3e-3  # microseconds for a byte of keys and values
SHORT = 256  # tokens of the longest stretch gathered where only the number of rows decides

# (rows [n] and tokens [n] of stretches) -> [n], True where they are to be gathered
Gathers = Callable[["Int64Array", "Int64Array"], "NDArray[np.bool_]"]


def by_config(config: EngineSection, shape: KVShape, *, fast: bool) -> Gathers:
    """What is gathered: as configured, else by cost, which is known for CPUs; nothing where a
    kernel takes any number of stretches in one call (fast)."""
    if fast:
        return by_rows(0)
    if config.shared_min_rows or shape.device.type != "cpu":
        return by_rows(config.shared_min_rows or 2)
    return by_cost(shape.token_bytes // shape.layers)


def by_cost(token_bytes: int) -> Gathers:
    """Gather where it is quicker. token_bytes: of the keys and values of a token in one layer."""

    def gathers(rows: Int64Array, sizes: Int64Array) -> NDArray[np.bool_]:
        picked = np.zeros(len(rows), bool)
        if len(rows) > 1:
            order = np.argsort(sizes, kind="stable")  # the longest so far pads the others
            n = sizes[order] * token_bytes
            apart = np.cumsum(CALL + n * READ)
            together = GATHER + np.cumsum(rows[order]) * (ROW + n * COPIED)
            best = int((apart - together).argmax())
            picked[order[: best + 1]] = best > 0 and apart[best] > together[best]
        return picked

    return gathers


def by_rows(min_rows: int) -> Gathers:
    """Gather short stretches that fewer than `min_rows` rows see."""

    def gathers(rows: Int64Array, sizes: Int64Array) -> NDArray[np.bool_]:
        picked: NDArray[np.bool_] = (rows < min_rows) & (sizes <= SHORT)
        return picked & bool(picked.sum() > 1)

    return gathers
