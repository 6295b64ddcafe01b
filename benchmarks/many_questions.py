"""What do 64 questions at once on one context gain over one by one?

    .venv/bin/python benchmarks/many_questions.py [--shape] [--questions 64] [--out 16]

One built context, text in and text out, `out` tokens each, end of sequence ignored; the arms in
turn A B A B. One by one is timed on the first eighth of the questions. `--shape`: random weights
of Qwen2.5-0.5B's shape instead of the reader. Physical limit, for each step of either arm: the
weights and the context's KV once at the measured read rate, or the products at the measured matrix
rate, whichever takes longer; the first step reads the question, each later one a token of every
row. The share of it that was reached is printed. Goal: >= 4 x the questions per second.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import torch

from preread.backend import Generate, RequestBatch
from preread.types import Prefix


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--out", type=int, default=16)
    parser.add_argument("--model", default="reader")
    parser.add_argument("--shape", action="store_true", help="the 0.5B shape, not the reader")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    questions = [f"What is word {i}?" for i in range(10, 10 + args.questions)]
    few = questions[: max(args.questions // 8, 1)]
    counts: dict[str, tuple[int, int]] = {}  # arm: prefix tokens cached, question tokens, each row
    with tempfile.TemporaryDirectory() as folder, common.opened(args, Path(folder)) as engine:
        prefix = Prefix(common.sized_text(engine, args.tokens))
        engine.run(engine.backend.build(prefix))

        def ask(arm: str, chosen: list[str]) -> None:
            work = Generate(max_tokens=args.out, ignore_eos=True)
            batch = RequestBatch(work, chosen, prefixes=(prefix,))
            for result in engine.iterate(engine.backend.submit(batch)):
                _, cached, computed, out = result.usage[0].tolist()
            assert out == args.out, result
            counts[arm] = cached, computed

        arms = {
            "one by one": lambda: [ask("one by one", [question]) for question in few],
            "at once": lambda: ask("at once", questions),
        }
        times = common.side_by_side(arms, args.rounds)
        info, parameters, work = engine.info, engine.parameters, common.Work.of(engine)
    limits = common.measured_limits(info.dtype)
    sizes, floors = {"one by one": 1, "at once": args.questions}, {}
    for arm, rows in sizes.items():
        past, own = counts[arm]
        first = work.floor_s(limits, rows * own, past=past, rows=rows, heads=rows)
        later = work.floor_s(limits, rows, past=past + own, rows=rows, heads=rows)
        floors[arm] = (first + (args.out - 1) * later) / rows
    asked = {"one by one": len(few), "at once": args.questions}
    rates = {arm: asked[arm] / common.median(times[arm]) for arm in arms}
    shares = {arm: rates[arm] * floors[arm] for arm in arms}
    per_question = {arm: [t / asked[arm] for t in times[arm]] for arm in arms}
    gain = common.paired_ratio(per_question["one by one"], per_question["at once"])
    past, own = counts["at once"]
    print(f"{parameters / 1e6:.1f} M parameters, {past:,} cached + {own} + {args.out} tokens each")
    for arm, rate in rates.items():
        print(
            f"{arm:11} {rate:8.2f} questions/s   limit {1 / floors[arm]:8.1f}"
            f"   {shares[arm]:6.1%} of it"
        )
    print(f"gain {gain:.2f} x   goal >= 4 x")
    figures = {
        "model": "0.5B shape" if args.shape else Path(args.model).name,
        "dtype": info.dtype,
        "questions": args.questions,
        "context_tokens": past,
        "question_tokens": own,
        "out": args.out,
        "one_by_one_qps": round(rates["one by one"], 3),
        "at_once_qps": round(rates["at once"], 3),
        "gain": round(gain, 2),
        "goal_gain": 4,
        "limit_qps": {arm: round(1 / floor, 2) for arm, floor in floors.items()},
        "roofline_share": {arm: round(share, 4) for arm, share in shares.items()},
        "all_s": {arm: [round(t, 3) for t in values] for arm, values in times.items()},
        "one_by_one_questions": len(few),
        "threads": args.threads,
        "rounds": args.rounds,
        **limits,
    }
    name = "many_questions_05b" if args.shape else "many_questions"
    common.finish(name, figures, keep=args.keep)


if __name__ == "__main__":
    main()
