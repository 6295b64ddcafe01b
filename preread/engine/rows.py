"""Rows of KV from the host's memory to a CUDA device in one call. Torch copies what is not in one
piece by way of a temporary tensor and a program, in a few calls each of which gives up the
interpreter's lock; the thread that copies loaded chunks then waits for those that verify them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

TO_DEVICE = 1  # cudaMemcpyHostToDevice
PITCH = 1 << 31  # bytes: rows must be less apart (cudaDeviceProp.memPitch)

# (to, its pitch, from, its pitch, bytes of a row, rows, kind, stream) -> error, 0 for none: see
# cudaMemcpy2DAsync in the CUDA runtime's API.
Copy2D = Callable[[int, int, int, int, int, int, int, int], int]


def runtime_copy() -> Copy2D | None:
    """That of the runtime which torch runs on; None: it cannot be had."""
    if torch.version.cuda is None:
        return None
    try:
        runtime = ctypes.CDLL(f"libcudart.so.{torch.version.cuda.split('.')[0]}")
        copy = runtime.cudaMemcpy2DAsync
    except (OSError, AttributeError):
        return None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    copy.argtypes = [pointer, size, pointer, size, size, size, ctypes.c_int, pointer]
    copy.restype = ctypes.c_int
    return copy


class Rows:
    """values [layers, 2, G, slots, D], in one piece: a row is all slots of a head of a side."""

    def __init__(self, values: torch.Tensor, copy: Copy2D, stream: Callable[[], int]) -> None:
        """stream: the current one of its device, as the runtime knows it."""
        assert values.is_contiguous()
        layers, _, heads, slots, dim = values.shape
        self._layers, self._heads, self._dim = layers, heads, dim
        self._dtype = values.dtype
        self._token = dim * values.itemsize
        self._pitch = slots * self._token
        self._base = values.data_ptr()
        self._copy = copy
        self._stream = stream

    @staticmethod
    def of(values: torch.Tensor) -> Rows | None:
        """None: nothing to be gained, or no way to do it."""
        if values.device.type != "cuda" or (copy := runtime_copy()) is None:
            return None
        index, current = values.device.index, torch._C._cuda_getCurrentRawStream
        rows = Rows(values, copy, lambda: int(current(index)))
        return rows if rows._pitch < PITCH else None

    def fill(self, at: slice, kv: torch.Tensor, layers: slice, heads: slice) -> bool:
        """kv [layers, 2, heads, n, D] becomes slots `at`; given to the stream, not waited for.
        False: it is not laid out for this, and nothing was done. Raises RuntimeError."""
        i, j, _ = layers.indices(self._layers)
        g, h, _ = heads.indices(self._heads)
        pitch, count = kv.stride(2), h - g
        flat = (2 * count * pitch, count * pitch, pitch, self._dim, 1)
        if kv.device.type != "cpu" or kv.dtype != self._dtype or kv.stride() != flat:
            return False
        if kv.shape != (j - i, 2, count, at.stop - at.start, self._dim):
            return False  # torch says so; here it would be written over what lies beside it
        source, step = kv.data_ptr(), pitch * kv.itemsize
        width, stream = kv.shape[3] * self._token, self._stream()
        to = self._base + at.start * self._token
        for row, rows in self._pieces(i, j, g, h):
            error = self._copy(
                to + row * self._pitch, self._pitch, source, step, width, rows, TO_DEVICE, stream
            )
            if error:
                raise RuntimeError(f"cudaMemcpy2DAsync: CUDA error {error}")
            source += rows * step
        return True

    def _pieces(self, i: int, j: int, g: int, h: int) -> list[tuple[int, int]]:
        """(first row, rows) that are one pitch apart."""
        if h - g == self._heads:
            return [(2 * i * h, 2 * (j - i) * h)]
        return [(side * self._heads + g, h - g) for side in range(2 * i, 2 * j)]
