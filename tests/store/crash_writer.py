"""Writes chunks until it is killed. A script, and without torch, so that it starts quickly.

crash_writer.py steps ROOT N     dies by SIGKILL just before its Nth call into the kernel
crash_writer.py forever ROOT SEED BUDGET    says "<n>" when chunk n is written, until killed
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preread.store.chunk import ChunkHeader, pack
from preread.store.keys import Box, chunk_key
from preread.store.tiers.disk import DiskTier

STEPS = ("open", "write", "utime", "fsync", "replace", "mkdir", "close", "scandir", "unlink")


def chunk(n: int) -> tuple[ChunkHeader, bytes]:
    """Chunk n as it must be: the reader of the wreck knows it too."""
    payload = random.Random(n).randbytes(1000 + n % 7)
    box, chain = Box(n, n + 1, 0, 1, 0, 1), n.to_bytes(32, "little")
    key = chunk_key(chain, box, "raw")
    return ChunkHeader(bytes(32), bytes(32), chain, box, 1, 1, 1, len(payload), key), payload


def write(tier: DiskTier, n: int) -> bool:
    header, payload = chunk(n)
    return tier.write(header.key, pack(header, memoryview(payload)))


def steps(root: Path, fatal: int) -> None:
    """Chunk 1 twice, then chunk 2, with kernel calls counted and writes cut into small ones."""
    calls = [0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    some = os.write
    os.write = lambda fd, data: some(fd, data[:400])
    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    tier = DiskTier(root)
    for n in (1, 1, 2):
        write(tier, n)
        some(1, b"%d " % n)


def forever(root: Path, seed: int, budget: int) -> None:
    tier, draw = DiskTier(root, budget=budget, fsync=False), random.Random(seed)
    while True:
        n = draw.randrange(200)
        if not write(tier, n):
            sys.exit(3)
        os.write(1, b"%d\n" % n)


if __name__ == "__main__":
    kind, where, *numbers = sys.argv[1:]
    {"steps": steps, "forever": forever}[kind](Path(where), *map(int, numbers))
