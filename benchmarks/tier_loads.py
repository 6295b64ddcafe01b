"""How far is loading KV from RAM and from a disk from what the machine can do?

    python benchmarks/tier_loads.py [--folder DIR] [--mb 256] [--rounds 9] [--threads 1] [--keep]

Chunks of 1 MiB (a layer of Llama 3.1 8B, 256 tokens), warm in the page cache, in turn A B A B:
plain `preadv` into buffers that were there, one file after the other, and into an arena, each piece
in its place; `DiskTier.read` into the buffers; and a whole `Store.load` into the arena from the
disk and from RAM (verified, with a patience and so in a thread of its own), from disk also with one
file at a time, and its twin that copies each box once it is verified. And the look-up of a chain of
100,000 tokens, of which nothing is held. Goal: 80 % of `preadv`, 2 ms. What verifying adds is in
verification_cost.py.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import torch

from preread.engine.arena import Arena
from preread.engine.kv import KVShape
from preread.engine.slots import Slots
from preread.store.chunk import HEADER_BYTES
from preread.store.codec import RawCodec
from preread.store.keys import Box, Geometry, fingerprint
from preread.store.layout import Layout
from preread.store.rates import Rates
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Tier
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier

GEOMETRY = Geometry(32, 8, 128, "bfloat16")  # 32 chunks to 256 tokens
READER = Geometry(8, 2, 64, "bfloat16")  # one
IDENTITY = fingerprint({"weights": "none"})


def preadv(paths: list[Path], buffers: list[bytearray]) -> None:
    for path, buffer in zip(paths, buffers, strict=True):
        fd = os.open(path, os.O_RDONLY)
        os.preadv(fd, [buffer], 0)
        os.close(fd)


def read(tier: Tier, keys: list[ChunkKey], buffers: list[bytearray]) -> None:
    place = iter(buffers)
    for value in tier.read(keys, lambda nbytes: memoryview(next(place))):
        assert isinstance(value, memoryview)


def scattered(paths: list[Path], places: list[list[memoryview]]) -> None:
    """Header and checksum aside."""
    for path, views in zip(paths, places, strict=True):
        fd = os.open(path, os.O_RDONLY)
        os.preadv(fd, views, HEADER_BYTES)
        os.close(fd)


def loader(tier: Tier, tokens: range, arena: Arena, *, copied: bool) -> Callable[[], None]:
    """Of a store whose computing is slow, so that everything is loaded, and watched."""
    rates = Rates()
    for n in (256, 1024):
        rates.computed(0, n, n * 0.01)
    store = Store([tier], GEOMETRY, IDENTITY, rates=rates)
    store.save(tokens, 0, lambda box: torch.randn(box.shape(128)).to(torch.bfloat16))

    def sink(box: Box, kv: torch.Tensor) -> None:
        arena.write(runs(box), kv, box.cell)

    def place(box: Box) -> Slots | None:
        return None if copied else arena.slots(runs(box), box.cell)

    def load() -> None:
        found = store.find(tokens)
        choice = store.choose(found)
        report = store.load(tokens, choice.upto, sink, found=found, choice=choice, place=place)
        assert report.tokens == len(tokens), report

    return load


def runs(box: Box) -> list[tuple[int, int]]:
    return [(box.token_start, box.token_end - box.token_start)]


def main() -> None:
    parser = common.parser(__doc__, rounds=9)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--mb", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokens = range(args.mb * (1 << 20) // GEOMETRY.bytes_per_token // 256 * 256)
    shape = KVShape(32, 8, 128, torch.bfloat16, torch.device("cpu"))
    arena = Arena(shape, len(tokens) // 256, 256)
    arena.kv.values.fill_(1)
    chain = np.arange(100_000)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        disk, ram = DiskTier(Path(folder), fsync=False), MemoryTier(name="ram")
        layout = Layout(GEOMETRY, IDENTITY, "default", RawCodec())
        spans = list(layout.spans(tokens))
        keys = [key for span in spans for key in layout.keys(span)]
        boxes = [chunk.box for span in spans for chunk in layout.chunks(span)]
        places = [arena.slots(runs(box), box.cell).pieces() for box in boxes]
        loads = {
            f"{tier.name}_load{'_copied' * copied}": loader(tier, tokens, arena, copied=copied)
            for tier in (disk, ram)
            for copied in (False, True)
        }
        one = DiskTier(Path(folder), fsync=False, window=1)
        loads["disk_load_window1"] = loader(one, tokens, arena, copied=False)
        paths = [Path(folder, "chunks", k.hex()[0], k.hex()[1], f"{k.hex()}.kv") for k in keys]
        buffers = [bytearray(path.stat().st_size) for path in paths]
        times = common.side_by_side(
            {
                "preadv": lambda: preadv(paths, buffers),
                "preadv_in_place": lambda: scattered(paths, places),
                "disk_tier": lambda: read(disk, keys, buffers),
                **loads,
                "find_ram": lambda: Store([ram], READER, IDENTITY).find(chain),
                "find_disk": lambda: Store([disk], READER, IDENTITY).find(chain),
            },
            args.rounds,
        )
    nbytes = sum(map(len, buffers))
    rates = {
        f"{name}_gb_s": round(nbytes / common.median(times[name]) / 1e9, 2)
        for name in ("preadv", "preadv_in_place", "disk_tier", *loads)
    }
    finds = {f"{n}_ms": round(common.median(times[n]) * 1e3, 2) for n in ("find_ram", "find_disk")}
    share = round(common.paired_ratio(times["preadv"], times["disk_tier"]), 2)
    figures = {"nbytes": nbytes, **rates, **finds, "disk_tier_of_preadv": share}
    for name in ("disk", "ram"):
        ratio = common.paired_ratio(times[f"{name}_load_copied"], times[f"{name}_load"])
        figures[f"{name}_load_times_copied"] = round(ratio, 2)
    in_place = common.paired_ratio(times["preadv_in_place"], times["disk_load"])
    figures["disk_load_of_preadv_in_place"] = round(in_place, 2)
    figures |= {"threads": args.threads, "rounds": args.rounds}
    common.finish("tier_loads", figures, keep=args.keep)


if __name__ == "__main__":
    main()
