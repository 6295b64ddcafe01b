"""kill -9 of a writer: whoever comes after sees whole chunks or none."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from preread.store.chunk import unpack
from preread.store.tiers.disk import DiskTier
from tests.store.crash_writer import chunk, write

ROOT = Path(__file__).parents[2]


def writer(*args: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.store.crash_writer", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def whole(tier: DiskTier, n: int) -> bool:
    """Chunk n is there; then it must be right to the last byte."""
    header, payload = chunk(n)
    (value,) = tier.read([header.key])
    assert value is None or (isinstance(value, memoryview) and unpack(value, header) == payload)
    return value is not None


def test_killed_before_every_single_step(tmp_path: Path) -> None:
    process = writer("steps", tmp_path)
    said = [tuple(map(int, line.split())) for line in process.communicate()[0].splitlines()]
    assert process.returncode == 0
    last = said[-1][0]
    assert last > 30 and said[-3:] == [(last, 1), (last, 1), (last, 2)]  # the one that came through
    halves = 0
    for fatal in range(1, last + 1):
        root = tmp_path / str(fatal)
        tier = DiskTier(root, fsync=False)
        held = [whole(tier, 1), whole(tier, 2)]
        assert held[0] >= ((fatal, 1) in said) and held[1] >= ((fatal, 2) in said)
        assert len(list(tier.scan())) == sum(held)
        for temp in root.glob("tmp/*"):
            halves += 1
            os.utime(temp, (0, 0))
        tier.tidy(0)
        assert not list(root.glob("tmp/*"))
        assert write(tier, 1) and write(tier, 2) and whole(tier, 1) and whole(tier, 2)
    assert halves > 10  # it did die in the middle


def test_killed_at_random_while_three_write_and_evict(tmp_path: Path) -> None:
    """Three processes share one folder and a budget of about 60 chunks; two are killed in turn and
    replaced, ten times, while this process reads."""
    budget, draw = 80_000, random.Random(5)
    crew = [writer("forever", tmp_path, seed, budget) for seed in range(3)]
    tier = DiskTier(tmp_path)
    try:
        for turn in range(10):
            victim = crew[turn % 2]
            assert victim.stdout is not None
            for _ in range(draw.randrange(1, 150)):  # so many chunks live, then die anywhere
                n = int(victim.stdout.readline())
                whole(tier, n)
            victim.kill()
            victim.communicate()
            crew[turn % 2] = writer("forever", tmp_path, 100 + turn, budget)
            assert tier.usage().nbytes <= budget * (16 + 3) // 16 + 3 * 1300
    finally:
        for process in crew:
            process.kill()
            process.communicate()
    assert sum(whole(tier, n) for n in range(200)) == len(list(tier.scan())) > 20
