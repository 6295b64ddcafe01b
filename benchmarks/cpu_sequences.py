"""What do S sequences on one shared prefix take on a CPU, with weights in this form or that?

    .venv/bin/python benchmarks/cpu_sequences.py [--sequences 1,4,8,16] [--arms plain,packed,int8]

The workload of llama.cpp's table: random weights of a 430 M Llama shape, 1,000 shared tokens that
nobody has read, 32 own, 32 out, greedy, through the engine, token ids in and out. Arms in turn A B
A B, all weights in memory at once, a fresh prefix each time:

    plain   bfloat16, torch's stock product (what this engine did before)
    packed  bfloat16, weights laid out for oneDNN once
    int8    weights in eight bits, everything else bfloat16
    w8a8    activations, too, but for the MLP's way down and the head; w8a8all: there as well
    kvint8, kvfp8  as packed, the KV in eight bits
    fp32    float32, stock product        fp32packed   float32, laid out once

Reported: the whole call, the prompt part, one step that decodes; wall seconds, and CPU seconds of
the process (which a busy machine with `--threads 1` does not spoil). Physical limits, beside each
figure: weights and shared KV once at the measured read rate for a step; products at the measured
bfloat16 (or float32) rate for the prompt, 1.5 and 2 times that for w8a8 and w8a8all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import common
import numpy as np
import torch

from preread.backend import Ragged
from preread.config import EngineSection
from preread.engine.engine import Engine
from preread.engine.kv import KVShape
from preread.kernels.int8 import int8
from preread.kernels.linear import MakeLinear, PlainLinear, pack
from preread.kernels.rope import Rope
from preread.kernels.w8a8 import MIXED, w8a8
from preread.models.config import ModelConfig
from preread.models.decoder import PackedDecoder
from preread.models.layers import layout
from preread.models.weights import random_tensors
from preread.tokens.batch import GenerateSpec, TokenBatch
from preread.types import Sampling

# arm: dtype, form of the weights, bytes each, precision of the KV
ARMS: dict[str, tuple[str, MakeLinear, int, str]] = {
    "plain": ("bfloat16", PlainLinear, 2, "full"),
    "packed": ("bfloat16", pack, 2, "full"),
    "int8": ("bfloat16", int8, 1, "full"),
    "w8a8": ("bfloat16", MIXED, 1, "full"),
    "w8a8all": ("bfloat16", w8a8, 1, "full"),
    "kvint8": ("bfloat16", pack, 2, "int8"),
    "kvfp8": ("bfloat16", pack, 2, "fp8"),
    "fp32": ("float32", PlainLinear, 4, "full"),
    "fp32packed": ("float32", pack, 4, "full"),
}
# Of integer products against bfloat16, one byte to one: two of three in w8a8.
SPEED = {"w8a8": 1.5, "w8a8all": 2.0}
CONFIG = EngineSection(prefix_memory_mb=64, suffix_memory_mb=64, max_sequences=32)
VOCABULARY = 32000


@dataclass(frozen=True)
class Took:
    """Seconds of one call, (wall, CPU) each: all of it, its prompt, its median decoding step."""

    total: tuple[float, float]
    prompt: tuple[float, float]
    step: tuple[float, float]


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--sequences", default="1,4,8,16")
    parser.add_argument("--arms", default="plain,packed,int8")
    parser.add_argument("--shared", type=int, default=1000)
    parser.add_argument("--own", type=int, default=32)
    parser.add_argument("--out", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = shape()
    engines = {arm: engine_of(arm, config) for arm in args.arms.split(",")}
    make = np.random.default_rng(0)
    kinds = {ARMS[arm][0] for arm in engines}
    figures: dict[str, object] = {}
    for rows in map(int, args.sequences.split(",")):
        took: dict[str, list[Took]] = {arm: [] for arm in engines}
        for _ in range(1 + args.rounds):
            for arm, engine in engines.items():
                took[arm].append(call(engine, rows, args, make))
        limits = {kind: common.measured_limits(kind) for kind in kinds}
        first = next(iter(engines))
        for arm in engines:
            one = summary(took[arm][1:], took[first][1:])  # without the warm-up
            one |= floors(config, arm, rows, args, limits[ARMS[arm][0]])
            figures[f"{arm} S={rows}"] = one
            print(f"{arm:10} S={rows:2}  " + "  ".join(f"{k} {v}" for k, v in one.items()))
    options = {k: v for k, v in vars(args).items() if k != "keep"}
    common.finish(
        f"cpu_sequences_{args.threads}t", options | {"limits": limits} | figures, keep=args.keep
    )


def shape() -> ModelConfig:
    """430 M parameters: the Llama shape of the llama.cpp measurements."""
    return ModelConfig(
        family="llama", vocab_size=VOCABULARY, hidden_size=1024, intermediate_size=4096, layers=24,
        heads=16, kv_heads=4, head_dim=64, max_positions=4096, norm_eps=1e-5, rope=Rope(),
        qkv_bias=False, out_bias=False, mlp_bias=False, qk_norm=False, tied=False, bos_id=None,
        eos_ids=(), dtype=None,
    )  # fmt: skip


def engine_of(arm: str, config: ModelConfig) -> Engine:
    dtype, made, _, kv = ARMS[arm]
    tensors = random_tensors(config, 0, getattr(torch, dtype), torch.device("cpu"))
    return Engine(PackedDecoder(config, tensors, made), CONFIG, kv_precision=kv)


def call(engine: Engine, rows: int, args: object, make: np.random.Generator) -> Took:
    """One batch from an idle engine to its end."""
    shared, own, out = (getattr(args, name) for name in ("shared", "own", "out"))
    fresh = make.integers(0, VOCABULARY, shared).astype(np.int32)
    tails = make.integers(0, VOCABULARY, rows * own).astype(np.int32)
    base = np.full(rows, shared, np.int32)
    batch = TokenBatch(
        spec=GenerateSpec(out, Sampling()),
        own=Ragged(tails, np.arange(rows + 1, dtype=np.int64) * own),
        groups=[fresh],
        group_of=np.zeros(rows, np.int32),
        base=base,
        context=base,
        seeds=np.zeros(rows, np.uint64),
    )
    clocks = [(time.perf_counter(), time.process_time())]
    job, tokens, prompt = engine.submit(batch), 0, 0
    while not engine.idle or engine.has_news:
        news = engine.step().get(job)
        clocks.append((time.perf_counter(), time.process_time()))
        if news is not None:
            assert not news.errors, news.errors
            prompt = prompt or len(clocks) - 1  # the first news come from the last of the prompt
            tokens += len(news.tokens.values)
    assert tokens == rows * out, tokens
    times = np.array(clocks)
    steps = np.diff(times, axis=0)[prompt:]
    steps = steps[steps[:, 0] > 0.1 * np.median(steps[:, 0])]  # the last call only hands over

    def pair(values: np.ndarray) -> tuple[float, float]:
        return float(values[0]), float(values[1])

    return Took(
        pair(times[-1] - times[0]), pair(times[prompt] - times[0]), pair(np.median(steps, axis=0))
    )


def summary(took: list[Took], first: list[Took]) -> dict[str, float]:
    """Medians over the rounds, and the median ratio to the first arm, round by round."""
    figures: dict[str, float] = {}
    for part, digits, unit in (("total", 2, 1), ("prompt", 2, 1), ("step", 1, 1000)):
        name = f"{part}_ms" if unit == 1000 else f"{part}_s"
        for clock, kind in enumerate(("", "cpu_")):
            values = [getattr(one, part)[clock] for one in took]
            others = [getattr(one, part)[clock] for one in first]
            figures[kind + name] = round(common.median(values) * unit, digits)
            figures[f"{kind}{part}_gain"] = round(common.paired_ratio(others, values), 2)
    return figures


def floors(
    config: ModelConfig, arm: str, rows: int, args: object, limits: dict[str, float]
) -> dict[str, float]:
    """What the machine allows: milliseconds of a step that decodes, seconds of the prompt."""
    dtype, _, each, kv = ARMS[arm]
    limits = limits | {"gemm_gflops": limits["gemm_gflops"] * SPEED.get(arm, 1.0)}
    kept = KVShape(
        config.layers,
        config.kv_heads,
        config.head_dim,
        getattr(torch, dtype),
        torch.device("cpu"),
        kv,
    )
    head = config.vocab_size * config.hidden_size
    body = sum(np.prod(s.shape) for k, s in layout(config).items() if k not in ("embed", "head"))
    work = common.Work(
        parameters=int(body),
        head=head,
        attention_width=config.layers * config.heads * config.head_dim,
        kv_token_bytes=kept.token_bytes,
        itemsize=each,
    )
    shared, own = args.shared, args.own  # type: ignore[attr-defined]
    step = work.floor_s(limits, rows, past=shared, rows=rows, heads=rows)
    reading = work.floor_s(limits, shared, heads=0)
    asking = work.floor_s(limits, rows * own, past=shared, rows=rows, heads=rows)
    return {"limit_step_ms": round(step * 1000, 1), "limit_prompt_s": round(reading + asking, 2)}


if __name__ == "__main__":
    main()
