"""Prompts as people give them -> as the backend takes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from preread.backend import Ragged
from preread.errors import RequestError

if TYPE_CHECKING:
    from preread.types import Int32Array


def columns(
    prompts: Iterable[str] | Iterable[Sequence[int]] | Iterable[int],
) -> list[str] | Ragged:
    """Prompts as the backend takes them. Raises RequestError for a mixed list and for ids that are
    no 32-bit whole numbers."""
    import numpy as np

    given = list(prompts)
    kinds = {str if isinstance(p, str) else int if isinstance(p, int | np.integer) else list
             for p in given}  # fmt: skip
    if len(kinds) > 1:
        raise RequestError(
            "prompts mixes texts, token ids and lists of ids.",
            hint="Give all texts, or all lists of ids.",
        )
    if kinds <= {str}:
        return given  # type: ignore[return-value]
    rows = [_ids(p, i) for i, p in enumerate([given] if kinds == {int} else given)]
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return Ragged(np.concatenate(rows), offsets)


def _ids(prompt: Any, row: int) -> Int32Array:
    import numpy as np

    try:
        ids = np.asarray(prompt)
        whole = ids.ndim == 1 and (not len(ids) or ids.dtype.kind in "iu")
        if whole and ((ids >= -(2**31)) & (ids < 2**31)).all():
            return ids.astype(np.int32)
    except (ValueError, OverflowError):
        pass
    raise RequestError(f"prompts[{row}] is no list of token ids.", hint="Give whole numbers.")
