"""xxh3-128 of memory in one piece, without the interpreter's lock where that can be had.

The package's own calls keep the lock while they read, so that of several threads which load, one
works: memory that is not in a cache comes at 5 to 10 GB/s to one core, and at several times that to
four. The compiled part of the package names the functions of the library in it, which are called
here directly; where it does not (another build, another platform) the package is asked as ever.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TypeAlias

import xxhash

Digest: TypeAlias = Callable[[memoryview], bytes]

LARGE = 1 << 16  # bytes from which the lock costs more than giving it up
_NAMES = ("XXH3_128bits_dispatch", "XXH3_128bits")  # the first picks what the processor has
_PROBED = (0, 1, 240, 241, 4097, LARGE + 3)  # lengths at which the algorithm changes, and a large

log = logging.getLogger("preread.store")


class _Hash(ctypes.Structure):
    """XXH128_hash_t of xxhash.h."""

    _fields_ = (("low", ctypes.c_uint64), ("high", ctypes.c_uint64))


def digest(view: memoryview) -> bytes:
    """The 16 bytes of XXH3_128bits, most significant first (xxHash, doc/xxhash_spec.md)."""
    if len(view) < LARGE or (fast := unlocked()) is None:
        return xxhash.xxh3_128_digest(view)
    return fast(view)


@cache
def unlocked() -> Digest | None:
    """The same without the lock, if a probe finds it; None where there is no such function."""
    try:
        library = ctypes.CDLL(import_module("xxhash._xxhash").__file__)
    except (ImportError, OSError, AttributeError) as exc:
        log.debug("checksums keep the interpreter's lock: %s", exc)
        return None
    for name in _NAMES:
        if (function := getattr(library, name, None)) is not None:
            function.restype, function.argtypes = _Hash, (ctypes.c_void_p, ctypes.c_size_t)
            if _right(found := _called(function)):
                return found
    log.debug("checksums keep the interpreter's lock: no function of %s is right", library._name)
    return None


def _called(function: Callable[[int, int], _Hash]) -> Digest:
    import numpy as np

    def unlocked(view: memoryview) -> bytes:
        # The array keeps the memory where it is.
        array = np.frombuffer(view, np.uint8) if len(view) else np.zeros(1, np.uint8)
        found = function(array.__array_interface__["data"][0], len(view))
        value: int = found.high << 64 | found.low
        return value.to_bytes(16, "big")

    return unlocked


def _right(found: Digest) -> bool:
    some = memoryview(bytes(range(251)) * (max(_PROBED) // 251 + 1))
    return all(found(some[:n]) == xxhash.xxh3_128_digest(some[:n]) for n in _PROBED)
