"""Load, compute, or both at once: how long until the first token of a context that a tier holds?

    python benchmarks/both_at_once.py [--lengths 1000,4000,16000] [--ratios 0.3,1,3] [--rounds 5]
        [--threads 2] [--shape] [--published 8b --device cuda] [--name 16k] [--keep]

The bundled reader (with --shape random weights of the 0.5B shape, with --published of a published
one), and a tier in memory that gives so many bytes a second that they alone take `ratio` times as
long as computing took; what loading adds to them comes on top. Arms
in turn, A B A B: computed | loaded | both at once | what the policy chooses from what it measured
in these rounds. Each time an engine that has nothing in memory is asked one question. Limit of both
at once, were the two not to disturb each other: 1 / (1/load + 1/compute).
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

import common
import torch
from first_token_tiers import model_of

from preread.app.storing import memory_for, room_for
from preread.backend import Generate, RequestBatch
from preread.config import EngineSection
from preread.contexts.rows import collect
from preread.engine.local import LocalBackend
from preread.models.load import LoadedModel, load_model
from preread.store.keys import Geometry, fingerprint
from preread.store.loading import Found
from preread.store.policy import Choice
from preread.store.rates import Rates
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Outcome, Room, Tier, fresh
from preread.store.tiers.memory import MemoryTier
from preread.types import Brought, Prefix

ARMS = ("compute", "load", "both", "auto")
ONE = Generate(max_tokens=1, ignore_eos=True)


class Paced(MemoryTier):
    """Gives so many bytes a second, like a link: it waits, and works as little as memory does."""

    nbytes, bytes_per_s = 0, inf  # of one value; of all

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        due = time.perf_counter()
        for outcome in super().read(keys, room):
            due += self.nbytes / self.bytes_per_s
            if (left := due - time.perf_counter()) > 0:
                time.sleep(left)
            yield outcome


class Way(Store):
    """Goes the way it is told."""

    way = "auto"

    def choose(self, found: Found, start: int = 0, *, both: bool = False) -> Choice:
        if self.way == "compute":
            return Choice(start, 0.0, 0.0)
        if self.way == "load":
            return Choice(found.tokens, 0.0, inf)
        chosen = super().choose(found, start, both=both)
        if self.way == "auto" or chosen.meets is not None:
            return chosen
        tiers = frozenset(tier.name for tier in found.places.values())
        half = (start + found.tokens) // 2
        return Choice(found.tokens, chosen.load_s / 2, chosen.compute_s, meets=half, tiers=tiers)


def opened(model: LoadedModel, tier: Tier, rates: Rates, way: str, tokens: int) -> LocalBackend:
    shape = model.config
    geometry = Geometry(shape.layers, shape.kv_heads, shape.head_dim, model.dtype)
    device = str(model.decoder.device)
    identity, room = fingerprint(model.fingerprint_parts), room_for(device)
    store = Way([tier], geometry, identity, rates=rates, room=room)
    store.way = way
    prefixes = max(512, (tokens + 2048) * geometry.bytes_per_token >> 20)
    config = EngineSection(prefix_memory_mb=prefixes, suffix_memory_mb=128)
    return LocalBackend(model, store, config.limited(model.decoder.device.type))


def asked(
    model: LoadedModel, tier: Tier, rates: Rates, way: str, prefix: Prefix
) -> tuple[float, Brought]:
    """Milliseconds until the first token, and what came from the tier."""

    async def ask() -> tuple[float, Brought]:
        tokens = len(model.chat.prefix(prefix))
        backend = opened(model, tier, rates, way, tokens)
        batch = RequestBatch(ONE, ["What is the first word?"], (prefix,))
        (row,) = await collect(backend, batch)
        await backend.close()
        return row.timing.ttft_ms, row.timing.brought or Brought()

    gc.collect()  # the engine before has its memory on the device until then
    return asyncio.run(ask())


async def saved(model: LoadedModel, tier: Tier, prefix: Prefix, tokens: int) -> None:
    """The tier holds all of it."""
    backend = opened(model, tier, Rates(), "compute", tokens)
    built = await backend.build(prefix)
    assert built.stored, "the tier has refused some of it"
    await backend.close()


def sized(model: LoadedModel, tokens: int) -> Prefix:
    """Filler of about so many tokens."""
    words = tokens // 2
    for _ in range(6):
        found = len(model.chat.prefix(Prefix(common.filler(words))))
        words = max(1, words * tokens // found)
    return Prefix(common.filler(words))


def row(model: LoadedModel, length: int, ratio: float, rounds: int) -> dict[str, object]:
    """One length and one tier."""
    prefix, rates = sized(model, length), Rates()
    tier = Paced(name="far", make=memory_for(str(model.decoder.device)))
    tokens = len(model.chat.prefix(prefix))
    asyncio.run(saved(model, tier, prefix, tokens))
    computed = [asked(model, tier, Rates(), "compute", prefix)[0] for _ in range(2)]
    held = list(tier.scan())
    nbytes = sum(entry.nbytes for entry in held)
    tier.nbytes, tier.bytes_per_s = nbytes // len(held), nbytes / (ratio * min(computed) / 1e3)
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    came: dict[str, Brought] = {}
    chosen = []
    for n in range(rounds + 1):
        for arm in ARMS:
            took, came[arm] = asked(model, tier, rates, arm, prefix)
            if n:  # the first is a warm-up, and what the policy learns from
                times[arm].append(round(took, 1))
        auto = came["auto"]
        chosen.append({"loaded": auto.tokens, "beside": auto.computed, "miss": auto.miss})
    ms = {arm: round(statistics.median(times[arm]), 1) for arm in ARMS}
    slowed = rates.slowed(["far"])
    limit = 1 / (1 / ms["compute"] + 1 / ms["load"])
    best = min(ms["compute"], ms["load"])
    way = "both" if auto.computed else "load" if auto.tokens else "compute"
    print(
        f"{tokens:7,} {nbytes / 1e6:7.1f} MB {ratio:5.1f}"
        + "".join(f"{ms[arm]:10,.1f}" for arm in ARMS)
        + f"  ({way}){limit:10,.1f}   {best / ms['both']:.2f} x; loaded {came['both'].tokens:,},"
        f" slowed {slowed.computing:.2f} and {slowed.loading:.2f} times"
    )
    return {
        "tokens": tokens, "nbytes": nbytes, "ratio": ratio, "ms": ms, "limit_ms": round(limit, 1),
        "gain": round(best / ms["both"], 2), "auto": way, "loaded": came["both"].tokens,
        "slowed": {k: round(v, 2) for k, v in slowed._asdict().items()},
        "all_ms": times, "chosen": chosen,
    }  # fmt: skip


def main() -> None:
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--lengths", default="1000,4000,16000")
    parser.add_argument("--ratios", default="0.3,1,3")
    parser.add_argument("--shape", action="store_true")
    parser.add_argument("--published", default="", help="a shape, see gpu_shared_prefix.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="", help="of the result's file, behind the benchmark's")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        if args.published:
            args.shape = args.published
            model = model_of(args, Path(folder) / "shape")
        elif args.shape:
            shape = common.shape_folder(Path(folder) / "shape")
            model = load_model(str(shape), weights="random", dtype="bfloat16", device="cpu")
        else:
            model = load_model("reader", dtype="bfloat16", device=args.device)
        print(" tokens         KV  ratio" + "".join(f"{arm:>10}" for arm in ARMS) + "       limit")
        rows = [
            row(model, length, ratio, args.rounds)
            for length in map(int, args.lengths.split(","))
            for ratio in map(float, args.ratios.split(","))
        ]
    name = args.published or ("0.5B shape" if args.shape else "reader")
    figures = {"model": name, "rows": rows, "threads": args.threads, "rounds": args.rounds}
    common.finish("both_at_once" + f"-{args.name}" * bool(args.name), figures, keep=args.keep)


if __name__ == "__main__":
    main()
