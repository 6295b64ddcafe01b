"""What does verifying every chunk add to the time a load takes, and what does opening sealed ones?

    .venv/bin/python benchmarks/verification_cost.py [--tokens 2048] [--rounds 9]

KV of an 8B shape (32 layers, 8 KV heads of 128, bfloat16: chunks of 1 MiB) is loaded into an arena,
as an engine does, from RAM and from disk (in the page cache: the medium itself would only hide the
cost). Three arms in turn, A B C A B C: chunks as they are, unverified; verified by checksum and
every field; sealed and opened. One chunk is read while another is verified, where a core is free.
Physical limit: from the tier's memory to the arena's once, at the measured copy rate. Goal:
verified <= 1.05 x, sealed <= 1.20 x of unverified.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

import common
import torch

from preread.engine.arena import Arena
from preread.engine.kv import KVShape
from preread.engine.slots import Slots
from preread.store import layout
from preread.store.chunk import CHECKSUM_BYTES, HEADER_BYTES, ChunkHeader, Parts
from preread.store.keys import Box, Geometry, fingerprint
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers.base import Tier
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier

GEOMETRY = Geometry(32, 8, 128, "bfloat16")
GOALS = {"verified": 1.05, "sealed": 1.20}


def main() -> None:
    parser = common.parser(__doc__, rounds=9)
    parser.add_argument("--tokens", type=int, default=2048)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    limits = common.measured_limits("float32")
    tokens = range(args.tokens)
    nbytes = args.tokens * GEOMETRY.bytes_per_token
    shape = KVShape(32, 8, 128, torch.bfloat16, torch.device("cpu"))
    arena = Arena(shape, args.tokens // 256, 256)
    arena.kv.values.fill_(1)
    floor = 2 * nbytes / limits["copy_gbps"] / 1e9  # read and written
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        tiers: dict[str, Tier] = {"ram": MemoryTier(), "disk": DiskTier(Path(folder), fsync=False)}
        for kind, tier in tiers.items():
            arms = {arm: loader(tier, arm, tokens, arena) for arm in ("unverified", *GOALS)}
            times = common.side_by_side(arms, args.rounds)
            figures[kind] = told(kind, times, nbytes, floor)
    figures |= {"bytes": nbytes, "limit_ms": round(floor * 1e3, 1), "goals": GOALS}
    figures |= {"tokens": args.tokens, "threads": args.threads, "rounds": args.rounds, **limits}
    common.finish("verification_cost", figures, keep=args.keep)


def loader(tier: Tier, arm: str, tokens: range, arena: Arena) -> Callable[[], None]:
    """A load of everything, its chunks having been saved."""
    keyring = Keyring((os.urandom(32),)) if arm == "sealed" else None
    store = Store([tier], GEOMETRY, fingerprint({"arm": arm}), keyring=keyring)

    def runs(box: Box) -> list[tuple[int, int]]:
        return [(box.token_start, box.token_end - box.token_start)]

    def place(box: Box) -> Slots | None:
        return arena.slots(runs(box), box.cell)

    def sink(box: Box, kv: torch.Tensor) -> None:
        arena.write(runs(box), kv, box.cell)

    assert store.save(tokens, 0, lambda box: arena.read(runs(box), box.cell)).stored
    believes = contextlib.nullcontext if arm != "unverified" else unverified

    def load() -> None:
        with believes():
            report = store.load(tokens, len(tokens), sink, place=place)
        assert report.tokens == len(tokens) and not report.faults

    return load


@contextlib.contextmanager
def unverified() -> Iterator[None]:
    """Everything that comes is believed: read to its place (from disk), or copied there."""

    def believed(value: memoryview, expected: ChunkHeader) -> memoryview:
        return value[HEADER_BYTES:-CHECKSUM_BYTES]

    with (
        unittest.mock.patch.object(Parts, "add", lambda self, parts, nbytes: None),
        unittest.mock.patch.object(Parts, "judge", lambda self: None),
        unittest.mock.patch.object(layout, "unpack", believed),
    ):
        yield


def told(kind: str, times: dict[str, list[float]], nbytes: int, floor: float) -> dict[str, object]:
    figures: dict[str, object] = {}
    for arm, values in times.items():
        middle = common.median(values)
        ratio = common.paired_ratio(values, times["unverified"])
        goal = f"   goal <= {GOALS[arm]:.2f} x" if arm in GOALS else ""
        print(
            f"{kind:5} {arm:11} {middle * 1e3:8.1f} ms   {nbytes / middle / 1e9:5.2f} GB/s   "
            f"limit {floor * 1e3:.1f} ms   {ratio:.3f} x{goal}"
        )
        figures[arm] = {
            "ms": round(middle * 1e3, 2),
            "gbps": round(nbytes / middle / 1e9, 2),
            "ratio": round(ratio, 3),
            "all_ms": [round(value * 1e3, 2) for value in values],
        }
    return figures


if __name__ == "__main__":
    main()
