"""What do 64 questions at once on one context gain over one by one?

    .venv/bin/python benchmarks/many_questions.py [--questions 64] [--out 16] [--shape]

One built context, the same questions, `out` tokens each, end of sequence ignored. Physical limit of
a decode step: the weights and the prefix KV are read once per step whatever the batch, so one by one
reads them `questions` times as often; both are compared with bytes over the measured copy rate and
2 x parameters x tokens over the measured matrix rate. Goal: >= 4 x the questions per second.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import numpy as np
import torch

import preread
from preread.backend import Generate, Ragged, RequestBatch


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--prefix", type=int, default=2000)
    parser.add_argument("--suffix", type=int, default=24)
    parser.add_argument("--out", type=int, default=16)
    parser.add_argument("--shape", action="store_true", help="the 0.5B shape, not the reader")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        if args.shape:
            shape = common.shape_folder(Path(folder) / "shape")
            engine = preread.open(str(shape), weights="random", dtype="bfloat16", home=home)
        else:
            engine = preread.open("reader", home=home)
        with engine:
            prefix = rng.integers(10, 4000, args.prefix)
            rows = [
                np.concatenate([prefix, rng.integers(10, 4000, args.suffix)]).astype(np.int32)
                for _ in range(args.questions)
            ]
            engine.prefill(prefix.astype(np.int32))

            def ask(chosen: list[np.ndarray]) -> None:
                offsets = np.cumsum([0, *(len(r) for r in chosen)]).astype(np.int64)
                work = Generate(max_tokens=args.out, ignore_eos=True)
                batch = RequestBatch(work, Ragged(np.concatenate(chosen), offsets), raw=True)
                for _ in engine.iterate(engine.backend.submit(batch)):
                    pass

            few = rows[: max(args.questions // 8, 1)]
            arms = {
                "one by one": lambda: [ask([row]) for row in few],
                "at once": lambda: ask(rows),
            }
            times = common.side_by_side(arms, args.rounds)
            info, parameters = engine.info, engine.parameters
    limits = common.measured_limits(info.dtype)
    width = 2 if "16" in info.dtype else 4
    kv = info.kv_bytes_per_token * args.prefix
    step_bytes = (parameters * width + kv) / limits["copy_gbps"] / 1e9
    flops = 2 * parameters * (args.suffix + args.out) / limits["gemm_gflops"] / 1e9
    floors = {
        "one by one": max(step_bytes * args.out, flops),
        "at once": max(step_bytes * args.out / args.questions, flops),
    }
    rates = {
        "one by one": len(few) / common.median(times["one by one"]),
        "at once": args.questions / common.median(times["at once"]),
    }
    for arm, rate in rates.items():
        share = rate * floors[arm]
        print(
            f"{arm:11} {rate:8.2f} questions/s   limit {1 / floors[arm]:9.1f}   {share:6.1%} of it"
        )
    gain = rates["at once"] / rates["one by one"]
    print(f"gain {gain:.2f} x   goal >= 4 x")
    figures = {
        "model": info.model if not args.shape else "0.5B shape",
        "dtype": info.dtype,
        "questions": args.questions,
        "prefix": args.prefix,
        "suffix": args.suffix,
        "out": args.out,
        "one_by_one_qps": round(rates["one by one"], 3),
        "at_once_qps": round(rates["at once"], 3),
        "gain": round(gain, 2),
        "goal_gain": 4,
        "roofline_share": {arm: round(rate * floors[arm], 4) for arm, rate in rates.items()},
        "threads": args.threads,
        "rounds": args.rounds,
        **limits,
    }
    name = "many_questions_05b" if args.shape else "many_questions"
    common.finish(name, figures, keep=args.keep)


if __name__ == "__main__":
    main()
