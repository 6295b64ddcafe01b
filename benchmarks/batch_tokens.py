"""What does the size of a step cost and bring?

    .venv/bin/python benchmarks/batch_tokens.py [--shape] [--sizes 64,128,…] [--questions 128]

For each `engine.batch_tokens` (an engine of its own, sizes in turn A B A B): reading a context of
`tokens` (prefill_chunk as large as the step), then `questions` requests of `own` tokens at once on
it, one token out. The price: how long a row that writes meanwhile waits for its next token at most,
and the peak memory of the process beyond the idle engine. On a busy machine the figures of a CPU
second (--threads 1) are the ones to compare. Physical limit: the products at the
measured matrix rate, or for each step weights and context at the measured read rate.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import common
import numpy as np
import torch

from preread.app.measuring import bytes_used
from preread.backend import Generate, RequestBatch
from preread.capacity.roofline import Load
from preread.capacity.trial import Sample, context_tokens, questions, run_trial

VOCAB = 256  # made-up ids: every model has them


class Arm:
    """One engine with its size of step, and what was measured with it."""

    def __init__(self, size: int, args: argparse.Namespace, folder: Path) -> None:
        os.environ["PREREAD_ENGINE_BATCH_TOKENS"] = str(size)
        os.environ["PREREAD_ENGINE_PREFILL_CHUNK"] = str(size)
        self.size, self._args = size, args
        self.engine = common.opened(args, folder)
        self._load = Load(args.tokens, 1, args.own, 1)
        self._seed = 0
        self.reads: list[tuple[float, float]] = []  # seconds, CPU seconds
        self.asks: list[tuple[float, float]] = []
        self.gaps: list[float] = []
        self.peak = 0

    def round(self) -> None:
        """One reading of a context that is new, one crowd of questions, one with a writer."""
        self._seed += 1
        fresh = np.random.default_rng(1000 + self._seed).integers(0, VOCAB, self._args.tokens)
        idle = bytes_used("cpu")
        busy = time.process_time()
        read = common.seconds(lambda: self.engine.prefill(fresh.astype(np.int32), store=False))
        self.reads.append((read, time.process_time() - busy))
        self.engine.prefill(context_tokens(self._load, VOCAB), store=False)
        busy = time.process_time()
        asked = self._ask(idle)
        self.asks.append((asked.seconds, time.process_time() - busy))
        self.peak = max(self.peak, asked.peak)
        self.gaps.append(max(self._written()))

    def _ask(self, idle: int) -> Sample:
        self._seed += 1
        prompts = questions(self._load, VOCAB, self._args.questions, self._seed)
        used = lambda: bytes_used("cpu") - idle  # noqa: E731
        return self.engine.run(run_trial(self.engine.backend, prompts, 1, used=used))

    def _written(self) -> list[float]:
        """Seconds between the tokens of one row while a crowd of questions comes in."""
        self._seed += 1
        one = questions(self._load, VOCAB, 1, self._seed)
        batch = RequestBatch(Generate(64, ignore_eos=True), one, raw=True)
        crowd, gaps, last = None, [], 0.0
        for news in self.engine.iterate(self.engine.backend.submit(batch)):
            now = time.perf_counter()
            if crowd is None:
                crowd = threading.Thread(target=self._ask, args=(0,))
                crowd.start()
            elif crowd.is_alive():
                gaps.append(now - last)
            last = now
            assert not news.errors, news.errors
        assert crowd is not None
        crowd.join()
        return gaps


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--sizes", default="64,128,256,512,1024,2048,4096,8192")
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--own", type=int, default=50)
    parser.add_argument("--model", default="reader")
    parser.add_argument("--shape", action="store_true", help="the 0.5B shape, not the reader")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        arms = [Arm(int(size), args, Path(folder)) for size in args.sizes.split(",")]
        for arm in arms:  # warm up, not counted
            arm.round()
            arm.reads, arm.asks, arm.gaps = [], [], []
        for _ in range(args.rounds):
            for arm in arms:
                arm.round()
        info, work = arms[0].engine.info, common.Work.of(arms[0].engine)
        limits = common.measured_limits(info.dtype)
        rows = [_row(arm, work, limits, args) for arm in arms]
        for arm in arms:
            arm.engine.close()
    for row in rows:
        print(
            f"{row['batch_tokens']:6} "
            f"   read {row['read_tok_s']:8.0f} tok/s ({row['read_share']:.0%})"
            f"   {row['questions_per_s']:7.1f} questions/s ({row['questions_share']:.0%})"
            f"   a CPU second: {row['read_tok_per_cpu_s']:.0f} tok,"
            f" {row['questions_per_cpu_s']:.1f} questions"
            f"   longest gap {row['longest_gap_ms']:7.1f} ms   peak {row['peak_mb']:6.1f} MB"
        )
    figures = {
        "model": "0.5B shape" if args.shape else Path(args.model).name,
        "dtype": info.dtype,
        "context_tokens": args.tokens,
        "question_tokens": args.own,
        "questions": args.questions,
        "sizes": rows,
        "threads": args.threads,
        "rounds": args.rounds,
        **limits,
    }
    name = "batch_tokens_05b" if args.shape else "batch_tokens"
    common.finish(name, figures, keep=args.keep)


def _row(
    arm: Arm, work: common.Work, limits: dict[str, float], args: argparse.Namespace
) -> dict[str, float]:
    read, read_cpu = (common.median(list(column)) for column in zip(*arm.reads, strict=True))
    ask, ask_cpu = (common.median(list(column)) for column in zip(*arm.asks, strict=True))
    chunks = -(-args.tokens // arm.size)
    read_floor = sum(
        work.floor_s(limits, min(arm.size, args.tokens), past=i * arm.size, heads=0)
        for i in range(chunks)
    )
    steps = max(1, -(-args.questions * args.own // arm.size))
    rows = max(1, args.questions // steps)
    ask_floor = steps * work.floor_s(
        limits, args.questions * args.own // steps, past=args.tokens, rows=rows, heads=rows
    )
    return {
        "batch_tokens": arm.size,
        "read_tok_s": round(args.tokens / read, 1),
        "read_share": round(read_floor / read, 4),
        "read_tok_per_cpu_s": round(args.tokens / read_cpu, 1),
        "questions_per_cpu_s": round(args.questions / ask_cpu, 2),
        "questions_per_s": round(args.questions / ask, 2),
        "questions_share": round(ask_floor / ask, 4),
        "longest_gap_ms": round(1000 * common.median(arm.gaps), 2),
        "peak_mb": round(arm.peak / 1e6, 1),
    }


if __name__ == "__main__":
    main()
