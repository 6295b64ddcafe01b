"""Does building a context cost more than transformers' own forward over the same tokens?

    .venv/bin/python benchmarks/build_speed.py [--tokens 2048] [--dtype bfloat16]

Qwen2.5-0.5B's shape, random weights, same dtype and threads, in turn A B A B. transformers runs one
forward with use_cache=True and the LM head on the last row only. Physical limit: 2 x parameters x
tokens (and the attention products) over the measured matrix rate. Goal: build <= 1.3 x.
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
    parser = common.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokens = np.random.default_rng(0).integers(10, 150_000, args.tokens).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        shape = common.shape_folder(Path(folder) / "shape")
        config = AutoConfig.from_pretrained(shape)
        theirs = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype)).eval()
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        with preread.open(
            str(shape), weights="random", dtype=args.dtype, home=Path(folder) / "home"
        ) as engine:

            def transformers_forward() -> None:
                with torch.inference_mode():
                    theirs(ids, use_cache=True, logits_to_keep=1)

            def preread_build() -> None:
                engine.prefill(tokens)

            arms = {"transformers": transformers_forward, "preread": preread_build}
            times = common.side_by_side(arms, args.rounds)
            parameters = engine.parameters - config.vocab_size * config.hidden_size
    limits = common.measured_limits(args.dtype)
    attention = 2 * config.num_hidden_layers * config.hidden_size * args.tokens**2
    floor = (2 * parameters * args.tokens + attention) / limits["gemm_gflops"] / 1e9
    ratio = 1 / common.paired_ratio(times["transformers"], times["preread"])
    for arm, values in times.items():
        t = common.median(values)
        print(f"{arm:13} {t:7.3f} s  {args.tokens / t:8.0f} tok/s  limit {floor:.3f} s")
    print(f"preread / transformers {ratio:.2f}   goal <= 1.3")
    figures = {
        "tokens": args.tokens,
        "dtype": args.dtype,
        "transformers_s": round(common.median(times["transformers"]), 3),
        "preread_s": round(common.median(times["preread"]), 3),
        "ratio": round(ratio, 3),
        "goal_ratio": 1.3,
        "limit_s": round(floor, 3),
        "threads": args.threads,
        "rounds": args.rounds,
        **limits,
    }
    common.finish("build_speed", figures, keep=args.keep)


if __name__ == "__main__":
    main()
