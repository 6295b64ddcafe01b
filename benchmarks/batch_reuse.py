"""What does reading the rubric once save, over one job of many candidates?

    .venv/bin/python benchmarks/batch_reuse.py [--requests 100] [--sample 100]

`preread bench batch`, all three modes in one run: the whole prompt every time with the model loaded
again and again, the whole prompt with the model kept, and the shared part read once. All go through
the journal and in blocks as `preread batch` does. 2,000 shared + 50 own tokens, one forward each.
More than `sample` requests are run in the full mode only; the others are extrapolated from it.
Goals: prompt tokens computed <= 3.5 % of the baseline's at 100 requests and <= 2.5 % at 10,000, and
>= 10 x as fast as the baseline.
"""

from __future__ import annotations

import common
import torch

from preread.cli.benching import Asked, measure, show


def main() -> None:
    parser = common.parser(__doc__, rounds=1)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--model", default="reader")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    made = measure(Asked(args.requests, model=args.model, sample=args.sample), quiet=False)
    show(made)
    goals = {"goal_computed_share": 0.035 if args.requests < 10_000 else 0.025, "goal_times": 10}
    figures = made.to_json() | goals | {"threads": args.threads}
    common.finish(f"batch_reuse-{args.requests}", figures, keep=args.keep)


if __name__ == "__main__":
    main()
