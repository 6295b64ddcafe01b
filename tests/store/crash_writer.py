"""Writes chunks until it is killed. A script, and without torch, so that it starts quickly.

`steps ROOT`: for N = 1, 2, … a child works in ROOT/N and dies by SIGKILL just before its Nth call
into the kernel; until one comes through. `forever ROOT SEED BUDGET`: writes on and on.
Says "<n>" (steps: "<N> <n>") when chunk n is written.
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
SMALL_WRITE = 400  # bytes: several writes to a chunk, so that it can be cut anywhere


def chunk(n: int) -> tuple[ChunkHeader, bytes]:
    """Chunk n as it must be: the reader of the wreck knows it too."""
    payload = random.Random(n).randbytes(1000 + n % 7)
    box, chain = Box(n, n + 1, 0, 1, 0, 1), n.to_bytes(32, "little")
    key = chunk_key(chain, box, "raw")
    return ChunkHeader(bytes(32), bytes(32), chain, box, 1, 1, 1, len(payload), key), payload


def write(tier: DiskTier, n: int) -> bool:
    header, payload = chunk(n)
    return tier.write(header.key, pack(header, memoryview(payload)))


def steps(root: Path) -> None:
    fatal, status = 0, -1
    while status != 0:
        fatal += 1
        if (child := os.fork()) == 0:
            doomed(root / str(fatal), fatal)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status


def doomed(root: Path, fatal: int) -> None:
    """Chunk 1 twice, then chunk 2, with calls into the kernel counted."""
    calls, say = [0], os.write

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    write_all: Any = os.write
    os.write = lambda fd, data: write_all(fd, data[:SMALL_WRITE])  # type: ignore[index]
    tier = DiskTier(root)
    for n in (1, 1, 2):
        write(tier, n)
        say(1, b"%d %d\n" % (fatal, n))


def forever(root: Path, seed: int, budget: int) -> None:
    tier, draw = DiskTier(root, budget=budget, fsync=False), random.Random(seed)
    while True:
        n = draw.randrange(200)
        if not write(tier, n):
            sys.exit(3)
        os.write(1, b"%d\n" % n)


if __name__ == "__main__":
    kind, where, *numbers = sys.argv[1:]
    if kind == "steps":
        steps(Path(where))
    else:
        forever(Path(where), *map(int, numbers))
