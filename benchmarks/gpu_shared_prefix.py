"""How fast are many requests over shared prefixes on a GPU, by the engine?

    .venv/bin/python benchmarks/gpu_shared_prefix.py 8b --work generate:4096,2000,50,1 …

A work is KIND:requests,prefix,own,out[,prefixes]. KIND generate: arrays in, contexts named; whole:
whole prompts as arrays, what they share is found; score: log-probabilities of all own tokens but
the first; apart: nothing is shared. With several prefixes the requests take turns. Weights are
random, end of sequence is ignored, prefixes are computed beforehand, the best of the rounds counts,
as in the anchors. Physical limit: products and attention at the card's measured matrix rate; of a
decoding step, or the bytes of weights and KV at its measured copy rate, whichever takes longer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from preread.backend import Ragged
from preread.config import EngineSection
from preread.engine.engine import Engine
from preread.engine.group.leader import GroupParts
from preread.engine.group.open import Wanted, open_group
from preread.kernels.fp8 import fp8
from preread.kernels.kv import PRECISIONS
from preread.kernels.linear import PlainLinear
from preread.kernels.rope import Rope
from preread.models.config import ModelConfig
from preread.models.decoder import PackedDecoder
from preread.models.layers import parameter_count
from preread.models.load import LoadedModel
from preread.models.weights import random_tensors
from preread.testing.models import write_tiny_model
from preread.tokens.batch import GenerateSpec, LikelihoodSpec, Spec, TokenBatch
from preread.tokens.share import share
from preread.types import Sampling

if TYPE_CHECKING:
    from preread.types import Int32Array

IDS = 250  # made-up token ids are below this
SHAPES = {
    "tiny": (256, 64, 128, 2, 4, 2, 16, 10000.0, True),
    "8b": (128256, 4096, 14336, 32, 32, 8, 128, 500000.0, False),
    "0.5b": (151936, 896, 4864, 24, 14, 2, 64, 1000000.0, True),
    "3b": (128256, 3072, 8192, 28, 24, 8, 128, 500000.0, True),
}


def config(shape: str) -> ModelConfig:
    vocab, hidden, inner, layers, heads, kv, size, theta, tied = SHAPES[shape]
    return ModelConfig(
        "llama", vocab, hidden, inner, layers, heads, kv, size, 65536, 1e-5, Rope(theta),
        False, False, False, False, tied, None, (), "bfloat16",
    )  # fmt: skip


def published(shape: str) -> dict[str, Any]:
    """The config.json of a shape."""
    c = config(shape)
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "head_dim": c.head_dim,
        "num_key_value_heads": c.kv_heads, "vocab_size": max(c.vocab_size, 4096),
        "max_position_embeddings": 32768, "rope_theta": c.rope.theta, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": c.tied, "torch_dtype": "bfloat16", "eos_token_id": 2,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Work:
    """One row of the table."""

    kind: str
    requests: int
    prefix: int
    own: int
    out: int
    prefixes: int = 1

    @staticmethod
    def of(text: str) -> Work:
        kind, _, sizes = text.partition(":")
        return Work(kind, *(int(n) for n in sizes.split(",")))

    def heads(self) -> list[Int32Array]:
        rng = np.random.default_rng(7)
        return [rng.integers(10, IDS, self.prefix).astype(np.int32) for _ in range(self.prefixes)]

    def batch(self, seed: int) -> TokenBatch:
        rng, n = np.random.default_rng(seed), self.requests
        own = rng.integers(10, IDS, (n, self.own)).astype(np.int32)
        spec: Spec = GenerateSpec(self.out, Sampling())
        if self.kind == "score":
            spec = LikelihoodSpec(np.full(n, self.own - 1, np.int32))
        none, seeds = np.zeros(n, np.int32), np.zeros(n, np.uint64)
        heads, of = self.heads(), (np.arange(n) % self.prefixes).astype(np.int32)
        if self.kind in ("whole", "apart"):
            if self.kind == "whole":
                own = np.concatenate((np.stack(heads)[of], own), axis=1)
            rows = Ragged(own.ravel(), np.arange(n + 1, dtype=np.int64) * own.shape[1])
            return share(TokenBatch(spec, rows, [], none - 1, none, none, seeds), 512)
        rows = Ragged(own.ravel(), np.arange(n + 1, dtype=np.int64) * self.own)
        return TokenBatch(spec, rows, heads, of, none + self.prefix, none + self.prefix, seeds)


def drain(engine: Engine, batch: TokenBatch) -> int:
    """Run a batch to its end; returns the output tokens."""
    engine.submit(batch)
    tokens = 0
    while not engine.idle or engine.has_news:
        for news in engine.step().values():
            assert not news.errors, news.errors
            tokens += len(news.tokens.values)
    synchronize(engine.decoder.device)
    return tokens


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def limits(device: torch.device) -> tuple[float, float]:
    """Matrix rate in FLOP/s and copy rate in bytes/s, measured."""
    size, room = (8192, 1 << 30) if device.type == "cuda" else (512, 1 << 24)
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    c = torch.empty(2, room, device=device, dtype=torch.uint8)
    rates = []
    for work, amount in ((lambda: a @ b, 2 * size**3), (lambda: c[0].copy_(c[1]), 2 * room)):
        for _ in range(3):
            work()
        synchronize(device)
        began = time.perf_counter()
        for _ in range(10):
            work()
        synchronize(device)
        rates.append(10 * amount / (time.perf_counter() - began))
    return rates[0], rates[1]


def floor_s(
    c: ModelConfig, work: Work, rows: int, kv: int, flops: float, rate: float
) -> float:  # fmt: skip
    """The least time of a work with `rows` at once, KV of `kv` bytes a token, on these rates."""
    weights = parameter_count(c) - (0 if c.tied else c.vocab_size * c.hidden_size)
    linear = weights - c.vocab_size * c.hidden_size
    head = c.vocab_size * c.hidden_size
    wide = 4 * c.heads * c.head_dim * c.layers
    past = work.prefix + work.own / 2
    heads = work.own - 1 if work.kind == "score" else 1
    read = work.requests * (work.own * (2 * linear + wide * past) + heads * 2 * head) / flops
    if work.out <= 1 or work.kind == "score":
        return read
    now = min(rows, work.requests)
    shared = work.prefix * work.prefixes
    own = work.own + work.out / 2
    moved = 2 * (linear + head) + kv * (shared + now * own)
    done = now * (2 * (linear + head) + wide * (work.prefix + own))
    return read + (work.out - 1) * work.requests / now * max(moved / rate, done / flops)


def measure(engine: Engine, work: Work, rounds: int) -> tuple[float, float, int]:
    """Best seconds of a work, CPU seconds of that round, and its output tokens."""
    best, spent, tokens = float("inf"), 0.0, 0
    if work.prefix:
        drain(engine, replace(work, requests=8 * work.prefixes).batch(99))
    for seed in range(rounds + 1):  # the first one compiles and captures
        batch = work.batch(seed) if work.kind != "whole" else None
        began, cpu = time.perf_counter(), time.process_time()
        tokens = drain(engine, batch or work.batch(seed))
        took = time.perf_counter() - began
        if seed and took < best:
            best, spent = took, time.process_time() - cpu
    return best, spent, tokens


def profile(engine: Engine, work: Work) -> str:
    """Where the device's time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    batch = replace(work, requests=min(work.requests, 1024)).batch(5)
    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        drain(engine, batch)
        spent = time.perf_counter() - began
    table = seen.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=60
    )
    lines = [line[:62] + line[-110:] for line in table.splitlines()]
    return f"{work} wall {spent * 1e3:.1f} ms\n" + "\n".join(lines)


def engine_for(args: argparse.Namespace, device: torch.device) -> Engine:
    shape, parts = config(args.shape), None
    linear = fp8 if args.weights == "fp8" else PlainLinear
    decoder: PackedDecoder
    if args.gpus > 1:
        loaded, parts = group_for(args)
        decoder = loaded.decoder
    else:
        decoder = PackedDecoder(shape, random_tensors(shape, 0, torch.bfloat16, device), linear)
    small = {} if device.type == "cuda" else {"prefix_memory_mb": 32, "suffix_memory_mb": 32}
    return Engine(
        decoder,
        EngineSection(
            batch_tokens=args.batch_tokens, max_sequences=args.sequences, kernels=args.kernels,
            **small,
        ),
        parts=parts,
        kv_precision=args.kv,
    )  # fmt: skip


def group_for(args: argparse.Namespace) -> tuple[LoadedModel, GroupParts]:
    """The model over several devices: each of them draws its part of the weights."""
    folder = write_tiny_model(Path(tempfile.mkdtemp()) / args.shape, "llama")  # for its tokenizer
    (folder / "config.json").write_text(json.dumps(published(args.shape)))
    wanted = Wanted(
        str(folder), args.gpus, dtype="bfloat16", device=args.device, weights="random",
        weights_precision=args.weights, kv_precision=args.kv,
    )  # fmt: skip
    return open_group(wanted)


def kernels_of(engine: Engine) -> str:
    """What ran: a probe that refuses our programs is only a warning elsewhere."""
    return "stock" if engine._runner._forward.fast is None else "programs"


def arguments() -> argparse.Namespace:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--work", nargs="+", default=["generate:4096,2000,50,1"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=0)
    parser.add_argument("--sequences", type=int, default=1024)
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--weights", choices=("full", "fp8"), default="full")
    parser.add_argument("--kv", choices=PRECISIONS, default="full")
    parser.add_argument("--gpus", type=int, default=1, help="limits are of one")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    flops, rate = limits(device)
    engine, figures = engine_for(args, device), list[dict[str, Any]]()
    for text in args.work:
        work = Work.of(text)
        best, spent, tokens = measure(engine, work, args.rounds)
        kv = engine.arena.token_bytes
        least = floor_s(config(args.shape), work, args.sequences, kv, flops, rate)
        figures.append({
            "work": text, "s": round(best, 3), "req_s": round(work.requests / best, 1),
            "out_tok_s": round(tokens / best), "limit_req_s": round(work.requests / least, 1),
            "share_of_limit": round(least / best, 3),
            "cpu_us_per_request": round(spent / work.requests * 1e6, 1),
        })  # fmt: skip
        print(figures[-1], flush=True)
        if args.profile:
            print(profile(engine, work), flush=True)
    engine.parts.close()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps({
        "benchmark": "gpu_shared_prefix", "date": datetime.date.today().isoformat(),
        "shape": args.shape, "kernels": kernels_of(engine),
        "weights": args.weights, "kv": args.kv, "gpus": args.gpus, "machine": name,
        "torch": torch.__version__,
        "batch_tokens": engine.config.batch_tokens, "sequences": args.sequences,
        "tflops": round(flops / 1e12), "gb_s": round(rate / 1e9), "figures": figures,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
