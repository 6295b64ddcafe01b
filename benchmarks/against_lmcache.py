"""How fast does KV come back from disk and Redis, against LMCache's own paths?

    python -m venv V && V/bin/pip install lmcache -c constraints.txt .[dev]
    V/bin/python benchmarks/against_lmcache.py [--tokens 2048] [--rounds 9] [--keep]

The same bytes (Llama 3.1 8B, bfloat16, 256 tokens a chunk) on the same disk (in the page cache) and
the same Valkey, in turn A B A B, until all of it lies where a model would read it: in one tensor
that was there before. LMCache by its public functions, which check nothing:
`LocalDiskBackend.batched_get_blocking` (4 threads), `RedisConnector.get` of all chunks at once
(redis-py) and `RESPConnector.batched_get` (C++, 8 threads), and a copy of each memory object to its
place, as its CPU connector does; `_uncopied` is the same without that copy. preread by
`Store.load` with a patience, as the engine does it: every byte verified (xxh3), straight into an
arena. `_sealed`: encrypted, too. LMCache with values of 32 MiB and of 2 MiB (16 tokens a chunk),
preread with 2 MiB, as 32 MiB is the worst case of Redis. Goal: faster than LMCache, with the
checksum on. LMCache is no dependency of this project: it brings another set of pins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from preread.engine.arena import Arena
from preread.engine.kv import KVShape
from preread.store.keys import Box, Geometry, fingerprint
from preread.store.rates import Rates
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers.base import Tier
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.redis import open_redis
from preread.store.tiers.urls import parse_tiers
from tests.store.valkey import running

LAYERS, HEADS, SIZE = 32, 8, 128
GEOMETRY = Geometry(LAYERS, HEADS, SIZE, "bfloat16")
IDENTITY = fingerprint({"weights": "none"})
KEYRING = Keyring.parse(sha256(b"a benchmark").hexdigest(), "a benchmark")
QUIET = {"LMCACHE_LOG_LEVEL": "ERROR", "LMCACHE_TRACK_USAGE": "false"}

Work = Callable[[], object]


def ours(tier: Tier, tokens: range, kv: torch.Tensor, keyring: Keyring | None = None) -> Work:
    """Load all of `kv` [layers, 2, heads, tokens, size] from this tier, verified."""
    rates = Rates()  # computing is slow: all is loaded, with a patience, as the engine does
    for n in (256, 1024):
        rates.computed(0, n, n * 0.01)
    store = Store([tier], GEOMETRY, IDENTITY, rates=rates, keyring=keyring)
    store.save(tokens, 0, lambda box: kv[box[2] : box[3], :, box[4] : box[5], box[0] : box[1]])
    shape = KVShape(LAYERS, HEADS, SIZE, torch.bfloat16, torch.device("cpu"))
    arena = Arena(shape, len(tokens) // 256, 256)
    arena.kv.values.zero_()

    def runs(box: Box) -> list[tuple[int, int]]:
        return [(box.token_start, box.token_end - box.token_start)]

    def load() -> None:
        found = store.find(tokens)
        choice = store.choose(found)
        report = store.load(
            tokens,
            choice.upto,
            lambda box, part: arena.write(runs(box), part, box.cell),
            found=found,
            choice=choice,
            place=lambda box: arena.slots(runs(box), box.cell),
        )
        assert report.tokens == len(tokens), report

    load()
    assert torch.equal(arena.kv.values.view(torch.int16), kv.view(torch.int16))
    return load


class Events:
    """LMCache's connectors live on an event loop of somebody's."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def _end(self) -> None:
        """Some of its tasks are never ended by anybody."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        self.run(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Theirs:
    """LMCache's parts for one chunk size, and `kv` in its layout."""

    def __init__(self, folder: Path, kv: torch.Tensor, chunk: int) -> None:
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.metadata import LMCacheMetadata
        from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

        tokens = kv.shape[3]
        shape = (LAYERS, 2, chunk, HEADS, SIZE)
        self.config = LMCacheEngineConfig.from_defaults(
            chunk_size=chunk, local_cpu=False, max_local_cpu_size=4 * kv.nbytes / 2**30,
            local_disk=str(folder), max_local_disk_size=8.0,
        )  # fmt: skip
        self.metadata = LMCacheMetadata("8b", 1, 1, 0, 0, torch.bfloat16, shape, chunk_size=chunk)
        self.cpu = LocalCPUBackend(self.config, self.metadata, dst_device="cpu")
        self.keys = [self._key(n) for n in range(tokens // chunk)]
        # KV_2LTD: [2, layers, tokens, hidden], LMCache's default layout.
        self.whole = kv.permute(1, 0, 3, 2, 4).reshape(2, LAYERS, tokens, HEADS * SIZE)
        self.place = torch.zeros_like(self.whole)
        self.parts, self.places = (
            [t[:, :, n * chunk : (n + 1) * chunk] for n in range(len(self.keys))]
            for t in (self.whole, self.place)
        )

    def _key(self, n: int) -> Any:
        from lmcache.utils import CacheEngineKey

        return CacheEngineKey(f"8b-{self.config.chunk_size}", 1, 0, n, torch.bfloat16)

    def objects(self) -> list[Any]:
        from lmcache.v1.memory_management import MemoryFormat

        made = []
        for part in self.parts:
            one = self.cpu.allocate(part.shape, torch.bfloat16, MemoryFormat.KV_2LTD)
            one.tensor.copy_(part)
            made.append(one)
        return made

    def dropped(self, objects: list[Any]) -> None:
        """Given back without being looked at."""
        assert len(objects) == len(self.keys)
        for one in objects:
            one.ref_count_down()

    def placed(self, objects: list[Any]) -> None:
        """Copied to where the model reads it, as preread's are, and given back."""
        for one, place in zip(objects, self.places, strict=True):
            place.copy_(one.tensor)
        self.dropped(objects)

    def ways(self, name: str, get: Callable[[], list[Any]]) -> dict[str, Work]:
        self.place.zero_()
        self.placed(get())
        assert torch.equal(self.whole.view(torch.int16), self.place.view(torch.int16))
        chunk = self.config.chunk_size
        return {
            f"lmcache_{name}_{chunk}": lambda: self.placed(get()),
            f"lmcache_{name}_{chunk}_uncopied": lambda: self.dropped(get()),
        }

    def disk(self, events: Events, stack: ExitStack) -> dict[str, Work]:
        from lmcache.v1.storage_backend.local_disk_backend import LocalDiskBackend

        backend = LocalDiskBackend(self.config, events.loop, self.cpu, dst_device="cpu")
        stack.callback(backend.close)
        objects = self.objects()
        backend.batched_submit_put_task(self.keys, objects)
        while any(backend.exists_in_put_tasks(key) for key in self.keys):
            time.sleep(0.01)
        self.dropped(objects)
        return self.ways("disk", lambda: backend.batched_get_blocking(self.keys))

    def redis(self, events: Events, port: int) -> dict[str, Work]:
        from lmcache.v1.storage_backend.connector import redis_connector as theirs

        async def plain() -> Any:
            return theirs.RedisConnector(f"redis://127.0.0.1:{port}", events.loop, self.cpu)

        async def resp() -> Any:
            return theirs.RESPConnector("127.0.0.1", port, events.loop, self.cpu)

        async def every(connector: Any) -> list[Any]:
            return list(await asyncio.gather(*map(connector.get, self.keys)))

        one, other = events.run(plain()), events.run(resp())
        for connector in (one, other):  # each has names of its own
            objects = self.objects()
            events.run(connector.batched_put(self.keys, objects))
            self.dropped(objects)
        ways = self.ways("redis", lambda: events.run(every(one)))
        return ways | self.ways("resp", lambda: events.run(other.batched_get(self.keys)))


@contextmanager
def arms(args: Any, tokens: range, kv: torch.Tensor) -> Iterator[dict[str, Work]]:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.folder)))
        server = stack.enter_context(running(home / "valkey"))
        tier = open_redis(parse_tiers(f"{server.url}?deadline=30s")[0])
        stack.callback(tier.close)
        disk = DiskTier(home / "ours", fsync=False)
        made = {"preread_disk": ours(disk, tokens, kv), "preread_redis": ours(tier, tokens, kv)}
        made["preread_disk_sealed"] = ours(disk, tokens, kv, KEYRING)
        events = Events()
        stack.callback(events.close)
        for chunk in (256, 16):
            (home / f"theirs{chunk}").mkdir()
            theirs = Theirs(home / f"theirs{chunk}", kv, chunk)
            made |= theirs.disk(events, stack) | theirs.redis(events, server.port)
        yield made


def main() -> None:
    parser = common.parser(__doc__, rounds=9)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    os.environ |= QUIET
    torch.set_num_threads(args.threads)
    try:
        import lmcache
    except ImportError:
        sys.exit("lmcache is not installed here; see this file's first lines.")
    logging.disable(logging.WARNING)
    drawn = np.random.default_rng(0).standard_normal(
        (LAYERS, 2, HEADS, args.tokens, SIZE), np.float32
    )
    kv = torch.from_numpy(drawn).to(torch.bfloat16)
    with arms(args, range(args.tokens), kv) as works:
        times = common.side_by_side(works, args.rounds)
    figures: dict[str, Any] = {"tokens": args.tokens, "nbytes": kv.nbytes, "rounds": args.rounds}
    figures |= {"threads": args.threads, "lmcache": getattr(lmcache, "__version__", "?")}
    for name, taken in times.items():
        mine = times["preread_disk" if "disk" in name else "preread_redis"]
        figures[name] = {
            "gb_s": round(kv.nbytes / common.median(taken) / 1e9, 2),
            "best_gb_s": round(kv.nbytes / min(taken) / 1e9, 2),
            "times_of_preread": round(common.paired_ratio(taken, mine), 2),
        }
        print(f"{name:28} {figures[name]}")
    common.finish("against_lmcache", figures, keep=args.keep)


if __name__ == "__main__":
    main()
