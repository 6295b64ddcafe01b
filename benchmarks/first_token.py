"""How much sooner is the first token of a built context than of the same prompt recomputed?

    .venv/bin/python benchmarks/first_token.py [--tokens 3000] [--model reader] [--rounds 5]

Both arms send the same question through the same engine in turn, A B A B; the recomputed arm asks
for no reuse. Time runs from the call to its first and only token, text in and text out. Physical
limit of both arms: 2 x parameters x tokens that the arm computes, and the products of their
attention, over the measured matrix rate; not less than reading the weights, and the KV of what is
cached, once at the measured read rate. Goal: >= 20 x at 3,000 tokens.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import torch

import preread
from preread.backend import Generate, RequestBatch
from preread.types import Prefix

QUESTION = "What is the first word?"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--model", default="reader")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    usage: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as home, preread.open(args.model, home=Path(home)) as engine:
        prefix = Prefix(common.sized_text(engine, args.tokens))
        built = engine.run(engine.backend.build(prefix))

        def first_token(arm: str) -> None:
            work = Generate(max_tokens=1, ignore_eos=True)
            batch = RequestBatch(work, [QUESTION], prefixes=(prefix,), reuse=arm == "cached")
            for result in engine.iterate(engine.backend.submit(batch)):
                usage[arm] = result.usage[0].tolist()

        arms = {arm: lambda arm=arm: first_token(arm) for arm in ("recomputed", "cached")}
        times = common.side_by_side(arms, args.rounds)
        limits = common.measured_limits(engine.info.dtype)
        work, parameters = common.Work.of(engine), engine.parameters
    assert usage["recomputed"][1] == 0 and usage["cached"][2] < 100, usage
    floors = {
        arm: work.floor_s(limits, computed, past=cached) * 1e3
        for arm, (_, cached, computed, _) in usage.items()
    }
    ratio = common.paired_ratio(times["recomputed"], times["cached"])
    print(f"context of {built.tokens:,} tokens, {parameters / 1e6:.1f} M parameters")
    for arm, values in times.items():
        _, cached, computed, _ = usage[arm]
        print(
            f"{arm:11} {common.median(values) * 1e3:9.2f} ms   limit {floors[arm]:7.2f} ms"
            f"   {cached:,} cached + {computed:,} computed tokens"
        )
    print(f"ratio       {ratio:9.1f} x    goal >= 20 x")
    figures = {
        "model": Path(args.model).name,
        "dtype": engine.info.dtype,
        "context_tokens": built.tokens,
        "cached_tokens": usage["cached"][1],
        "computed_tokens": {arm: counts[2] for arm, counts in usage.items()},
        "cached_ms": round(common.median(times["cached"]) * 1e3, 2),
        "recomputed_ms": round(common.median(times["recomputed"]) * 1e3, 2),
        "ratio": round(ratio, 1),
        "goal_ratio": 20,
        "limit_ms": {arm: round(floor, 3) for arm, floor in floors.items()},
        "all_ms": {arm: [round(t * 1e3, 2) for t in values] for arm, values in times.items()},
        "threads": args.threads,
        "rounds": args.rounds,
        **limits,
    }
    common.finish("first_token", figures, keep=args.keep)


if __name__ == "__main__":
    main()
