"""One copy to the device for all the small arrays of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Int32Array


ALIGNED = 4  # int32s: a program is compiled once more for an array that begins elsewhere


def needed(arrays: Sequence[Int32Array]) -> int:
    """How many int32s `staged` takes for them."""
    return sum(array.size + _padding(array) for array in arrays)


def staged(
    arrays: Sequence[Int32Array], device: torch.device, into: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """int32 arrays of any shapes -> the same on the device, as views of one tensor, each of which
    begins at a multiple of 16 bytes: `into` (1-d, large enough; what a graph was captured over) or
    a new one. Does not wait."""
    sizes = [size for array in arrays for size in (array.size, _padding(array))]
    ends = np.cumsum([0, *sizes])
    host = torch.empty(int(ends[-1]), dtype=torch.int32, pin_memory=device.type == "cuda")
    flat = host.numpy()
    for array, at in zip(arrays, ends[::2].tolist(), strict=False):
        flat[at : at + array.size] = array.ravel()
    if into is None:
        there = host.to(device, non_blocking=True)
    else:
        there = into[: len(host)]
        there.copy_(host, non_blocking=True)
    parts = there.split_with_sizes(sizes)[::2]
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _padding(array: Int32Array) -> int:
    return -array.size % ALIGNED


def arriving(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The same on the device. Does not wait."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
