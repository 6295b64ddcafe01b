"""How far is loading KV from RAM and from a disk from what the machine can do?

    python benchmarks/tier_loads.py [--folder DIR] [--mb 256] [--rounds 9]

Bytes of chunks of just under 2 MiB, warm in the page cache, through four layers, each beside the
one below: plain `preadv` into buffers that were there, `DiskTier.read` into the same, a whole
`Store.load` (verified, each box copied to where it belongs, with a patience and so in a thread of
its own), and the same with verification taken out. And a look-up of a chain of 100,000 tokens.
Medians of the rounds, which take turns. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import torch

from preread.store.keys import Geometry, fingerprint
from preread.store.layout import Layout
from preread.store.rates import Rates
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Outcome, Tier
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier

GEOMETRY = Geometry(32, 8, 128, "bfloat16")  # Llama 3.1 8B: 17 chunks to 256 tokens


def preadv(paths: list[Path], buffers: list[bytearray]) -> int:
    """What the kernel can do, one file after the other."""
    total = 0
    for path, buffer in zip(paths, buffers, strict=True):
        fd = os.open(path, os.O_RDONLY)
        total += os.preadv(fd, [buffer], 0)
        os.close(fd)
    return total


def rate(work: Callable[[], int], rounds: list[float]) -> None:
    began = time.perf_counter()
    nbytes = work()
    rounds.append(nbytes / (time.perf_counter() - began) / 1e9)


def store_on(tier: Tier) -> Store:
    rates = Rates()
    for n in (256, 1024):  # computing is slow: everything is loaded, and watched
        rates.computed(0, n, n * 0.01)
    return Store([tier], GEOMETRY, fingerprint({"weights": "none"}), rates=rates)


def loader(store: Store, tokens: range, place: torch.Tensor) -> Callable[[], int]:
    def sink(box: tuple[int, ...], kv: torch.Tensor) -> None:
        a, b, i, j, g, h = box
        place[i:j, :, g:h, a:b] = kv

    def load() -> int:
        found = store.find(tokens)
        choice = store.choose(found)
        report = store.load(tokens, choice.upto, sink, found=found, choice=choice)
        assert report.tokens == len(tokens), report
        return report.nbytes

    return load


def unverified(load: Callable[[], int]) -> Callable[[], int]:
    def work() -> int:
        with mock.patch.object(Layout, "unpack", lambda self, value, chunk: value[256:-16]):
            return load()

    return work


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokens = range(args.mb * (1 << 20) // GEOMETRY.bytes_per_token // 256 * 256)
    place = torch.zeros(32, 2, 8, len(tokens), 128, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        disk, ram = DiskTier(Path(folder), fsync=False), MemoryTier(name="ram")
        stores = {tier: store_on(tier) for tier in (disk, ram)}
        for store in stores.values():
            store.save(tokens, 0, lambda box: torch.randn(box.shape(128)).to(torch.bfloat16))
        keys = [ChunkKey(bytes.fromhex(key)) for key in stores[disk].keys(tokens)]
        paths = [Path(folder, "chunks", k.hex()[0], k.hex()[1], f"{k.hex()}.kv") for k in keys]
        loads = {
            name: loader(stores[t], tokens, place) for name, t in (("disk", disk), ("ram", ram))
        }
        buffers = [bytearray(path.stat().st_size) for path in paths]

        def read(tier: Tier) -> Iterator[Outcome]:
            place = iter(buffers)
            return tier.read(keys, lambda nbytes: memoryview(next(place)))

        works: dict[str, Callable[[], int]] = {
            "preadv": lambda: preadv(paths, buffers),
            "disk_tier": lambda: sum(len(v) for v in read(disk) if isinstance(v, memoryview)),
            "disk_load": loads["disk"],
            "disk_load_unverified": unverified(loads["disk"]),
            "ram_load": loads["ram"],
            "ram_load_unverified": unverified(loads["ram"]),
        }
        rounds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(args.rounds + 1):  # the first warms up
            for name, work in works.items():
                rate(work, rounds[name])
        result = {f"{name}_gb_s": round(median(r[1:]), 3) for name, r in rounds.items()}
        small = Geometry(8, 2, 64, "float32")  # the bundled reader: one chunk to 256 tokens
        finds, chain = [], np.arange(100_000)
        reader = Store([MemoryTier()], small, fingerprint({"weights": "none"}))
        for _ in range(args.rounds):
            began = time.perf_counter()
            reader.find(chain)
            finds.append((time.perf_counter() - began) * 1e3)
    result |= {
        "find_100k_ms": round(median(finds), 3),
        "tier_of_preadv": round(result["disk_tier_gb_s"] / result["preadv_gb_s"], 2),
        "mb": args.mb,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    for name in ("disk", "ram"):
        cost = result[f"{name}_load_unverified_gb_s"] / result[f"{name}_load_gb_s"] - 1
        result[f"{name}_verifying_adds"] = round(cost, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
