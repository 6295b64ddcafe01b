"""Does building a context cost more than transformers' own forward over the same tokens?

    .venv/bin/python benchmarks/build_speed.py [--tokens 3000] [--dtype bfloat16] [--rounds 3]

Qwen2.5-0.5B's shape, random weights, same dtype and threads, in turn A B A B; every round reads
other tokens, so that nothing can be reused. transformers runs one forward with its default
attention, use_cache=True and the LM head on the last row only. `build` is everything: the prefix
made ready, and its KV written to disk (fsync included); the first part is reported beside it.
Physical limit: 2 x parameters x tokens, and the products of the causal half of attention, over the
measured matrix rate. Goal: build <= 1.3 x.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import preread


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng, ready = np.random.default_rng(0), []

    def fresh() -> np.ndarray:
        return rng.integers(10, 150_000, args.tokens).astype(np.int32)

    with tempfile.TemporaryDirectory() as folder:
        shape = common.shape_folder(Path(folder) / "shape")
        config = AutoConfig.from_pretrained(shape)
        theirs = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype)).eval()
        home = Path(folder) / "home"
        with preread.open(str(shape), weights="random", dtype=args.dtype, home=home) as engine:

            def transformers_forward() -> None:
                ids = torch.from_numpy(fresh().astype(np.int64))[None]
                with torch.inference_mode():
                    theirs(ids, use_cache=True, logits_to_keep=1)

            def preread_build() -> None:
                built = engine.prefill(fresh())
                assert built.computed_tokens == args.tokens and built.stored, built
                ready.append(built.seconds)

            arms = {"transformers": transformers_forward, "preread": preread_build}
            times = common.side_by_side(arms, args.rounds)
            work = common.Work.of(engine)
    limits = common.measured_limits(args.dtype)
    floor = work.floor_s(limits, args.tokens, heads=0)
    ready = ready[1:]  # the first was the warm-up
    ratio = 1 / common.paired_ratio(times["transformers"], times["preread"])
    ready_ratio = 1 / common.paired_ratio(times["transformers"], ready)
    print(f"{args.tokens:,} tokens, {args.dtype}, {args.threads} threads")
    for arm, values in (times | {"  until ready": ready}).items():
        t = common.median(values)
        print(f"{arm:13} {t:7.3f} s  {args.tokens / t:8.0f} tok/s  limit {floor:.3f} s")
    print(f"preread / transformers {ratio:.2f} (until ready {ready_ratio:.2f})   goal <= 1.3")
    figures = {
        "tokens": args.tokens,
        "dtype": args.dtype,
        "transformers_s": round(common.median(times["transformers"]), 3),
        "preread_s": round(common.median(times["preread"]), 3),
        "preread_ready_s": round(common.median(ready), 3),
        "ratio": round(ratio, 3),
        "ready_ratio": round(ready_ratio, 3),
        "goal_ratio": 1.3,
        "limit_s": round(floor, 3),
        "all_s": {arm: [round(t, 3) for t in values] for arm, values in times.items()},
        "attention": theirs.config._attn_implementation,
        "threads": args.threads,
        "rounds": args.rounds,
        **limits,
    }
    common.finish("build_speed", figures, keep=args.keep)


if __name__ == "__main__":
    main()
