"""How much sooner does the first token come from a built context than from the same prompt recomputed?

    .venv/bin/python benchmarks/first_token.py [--tokens 3000] [--model reader]

Both arms send the same row through the same engine in turn, A B A B; the recomputed arm asks for no
reuse. Physical limit of the recomputed arm: 2 x parameters x tokens over the measured matrix rate;
of the cached arm: reading the weights once over the measured copy rate. Goal: >= 20 x at 3,000 tokens.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import torch

import preread
from preread.backend import Generate, RequestBatch
from preread.types import Prefix


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--model", default="reader")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as home, preread.open(args.model, home=Path(home)) as engine:
        prefix = Prefix(_sized(engine, args.tokens))
        built = engine.run(engine.backend.build(prefix))

        def first_token(question: str, reuse: bool) -> None:
            work = Generate(max_tokens=1, ignore_eos=True)
            batch = RequestBatch(work, [question], prefixes=(prefix,), reuse=reuse)
            for _ in engine.iterate(engine.backend.submit(batch)):
                pass

        arms = {
            "recomputed": lambda: first_token("What is the first word?", False),
            "cached": lambda: first_token("What is the first word?", True),
        }
        times = common.side_by_side(arms, args.rounds)
        limits = common.measured_limits(engine.info.dtype)
        parameters = engine.parameters
    ratio = common.paired_ratio(times["recomputed"], times["cached"])
    width = 2 if "16" in engine.info.dtype else 4
    floor = {
        "recomputed_ms": 2 * parameters * built.tokens / limits["gemm_gflops"] / 1e6,
        "cached_ms": parameters * width / limits["copy_gbps"] / 1e6,
    }
    print(f"context of {built.tokens:,} tokens, {parameters / 1e6:.1f} M parameters")
    for arm, values in times.items():
        print(f"{arm:11} {common.median(values) * 1e3:9.2f} ms   limit {floor[arm + '_ms']:.2f} ms")
    print(f"ratio       {ratio:9.1f} x    goal >= 20 x")
    figures = {
        "context_tokens": built.tokens,
        "cached_ms": round(common.median(times["cached"]) * 1e3, 2),
        "recomputed_ms": round(common.median(times["recomputed"]) * 1e3, 2),
        "ratio": round(ratio, 1),
        "goal_ratio": 20,
        "limit_ms": {k: round(v, 3) for k, v in floor.items()},
        "threads": args.threads,
        "rounds": args.rounds,
        **limits,
    }
    common.finish("first_token", figures, keep=args.keep)


def _sized(engine: preread.Engine, tokens: int) -> str:
    """Filler text whose prefix has about `tokens` tokens."""
    words = tokens // 2
    for _ in range(6):
        text = common.filler(words)
        counted = engine.run(engine.backend.count([Prefix(text)]))[0]
        words = max(int(words * tokens / counted), 1)
    return common.filler(words)


if __name__ == "__main__":
    main()
