"""Prompts as people give them -> as the backend takes them."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, Any

from preread.backend import Ragged
from preread.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from preread.types import Int32Array

    Ids = Sequence[int] | NDArray[np.integer[Any]]
    ManyPrompts = Sequence[str] | Sequence[Ids] | Ids | Ragged


def columns(prompts: ManyPrompts) -> list[str] | Ragged:
    """Prompts as the backend takes them: texts, lists or arrays of token ids, one list of ids, a
    matrix of them, or ready columns. Raises RequestError for a mixed list and for ids that are no
    32-bit whole numbers."""
    import numpy as np

    if isinstance(prompts, Ragged):
        return _checked(prompts)
    if isinstance(prompts, np.ndarray) and prompts.ndim == 2:
        n, width = prompts.shape
        return Ragged(_ids(prompts.ravel(), 0), np.arange(n + 1) * width)
    given = list(prompts)
    kinds = {str if isinstance(p, str) else int if isinstance(p, int | np.integer) else list
             for p in given}  # fmt: skip
    if len(kinds) > 1:
        raise RequestError(
            "prompts mixes texts, token ids and lists of ids.",
            hint="Give all texts, or all lists of ids.",
        )
    if kinds <= {str}:
        return given
    rows = [_row(p, i) for i, p in enumerate([given] if kinds == {int} else given)]
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return Ragged(np.concatenate(rows), offsets)


def _checked(prompts: Ragged) -> Ragged:
    import numpy as np

    offsets = np.asarray(prompts.offsets, np.int64)
    ends = (0, len(prompts.values))
    if not len(offsets) or (offsets[0], offsets[-1]) != ends or (np.diff(offsets) < 0).any():
        raise RequestError(
            "prompts: the offsets do not divide the values.",
            hint="Row i is values[offsets[i]:offsets[i + 1]]; they run from 0 to len(values).",
        )
    return Ragged(_ids(prompts.values, 0), offsets)


def _row(prompt: Any, row: int) -> Int32Array:
    """Python ints are packed by the C library, three times as fast as numpy reads them."""
    import numpy as np

    if isinstance(prompt, list | tuple):
        try:
            return np.frombuffer(Struct(f"={len(prompt)}i").pack(*prompt), np.int32)
        except StructError:
            pass  # `_ids` says why
    return _ids(prompt, row)


def _ids(prompt: Any, row: int) -> Int32Array:
    import numpy as np

    try:
        ids = np.asarray(prompt)
        if ids.ndim == 1 and ids.dtype == np.int32:
            return ids
        whole = ids.ndim == 1 and (not len(ids) or ids.dtype.kind in "iu")
        if whole and ((ids >= -(2**31)) & (ids < 2**31)).all():
            return ids.astype(np.int32)
    except (ValueError, OverflowError):
        pass
    raise RequestError(f"prompts[{row}] is no list of token ids.", hint="Give whole numbers.")
