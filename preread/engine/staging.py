"""One copy to the device for all the small arrays of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Int32Array


def staged(
    arrays: Sequence[Int32Array], device: torch.device, into: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """int32 arrays of any shapes -> the same on the device, as views of one tensor: `into` (1-d,
    large enough; what a graph was captured over) or a new one. Does not wait."""
    sizes = [a.size for a in arrays]
    ends = np.cumsum([0, *sizes])
    host = torch.empty(int(ends[-1]), dtype=torch.int32, pin_memory=device.type == "cuda")
    flat = host.numpy()
    for array, at in zip(arrays, ends.tolist(), strict=False):
        flat[at : at + array.size] = array.ravel()
    if into is None:
        there = host.to(device, non_blocking=True)
    else:
        there = into[: len(host)]
        there.copy_(host, non_blocking=True)
    parts = there.split_with_sizes(sizes)
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def arriving(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The same on the device. Does not wait."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
