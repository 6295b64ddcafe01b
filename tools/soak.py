"""Does an engine stay whole and right, whatever happens to it, for as long as it runs?

    make soak ARGS="--minutes 20 --device auto"

Four engines with little memory (the step in flight and not, four model families) live as long as
the soak. Round after round one of them is given random jobs over texts that share beginnings:
generated (greedy, sampled), chosen and scored rows, named, found and private prefixes, turns that
continue kept ones; rows are cancelled and left, prefixes held, read and released, steps run out of
memory, rows read a token at which the model raises. After every step: Engine.check(). After every
round: pages and places whole again, and every row equal to the same row alone on a new engine,
except where float64 says that rounding decides. At the end: host and device memory as after the
warm-up. A line every 30 s, one JSON line at the end; exit code 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import logging
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from soak_rounds import SETUPS, Bench, Round

from preread.capacity.machine import this_machine
from preread.types import Finish

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
REPORT_S = 30.0
WARM = 0.3  # the share of the soak after which memory may no longer grow,
WARM_ROUNDS = 2 * len(SETUPS)  # or so many rounds, whichever is later
HOST_MB, DEVICE_MB, OBJECTS = 16.0, 16.0, 5_000  # by which it may, where it is called flat


class Memory(NamedTuple):
    """host_mb: resident; peak_mb: the most so far; device_mb: allocated by torch; objects: of
    the interpreter, alive; programs: compiled for the device, each a megabyte or more of the
    host's."""

    host_mb: float
    peak_mb: float
    device_mb: float
    objects: int
    programs: int

    @staticmethod
    def now() -> Memory:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        device = torch.cuda.memory_allocated() / 2**20  # 0 where there is none
        host = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        sizes = round(host, 1), round(peak, 1), round(device, 1)
        return Memory(*sizes, sys.getallocatedblocks(), programs())


def programs() -> int:
    """Triton's compiled programs: one for each way in which the arguments of a kernel divide."""
    return sum(type(thing).__name__ == "CompiledKernel" for thing in gc.get_objects())


class Soak:
    """Rounds, what they came to, and how much memory there was."""

    def __init__(self, args: argparse.Namespace, folder: Path, device: torch.device) -> None:
        self._args, self._started, self._told = args, time.monotonic(), time.monotonic()
        self.benches = [Bench(s, folder / s.family, device) for s in SETUPS]
        self.counts: Counter[str] = Counter()
        self.first: Memory | None = None
        self._wide = False
        self._compiled, self._settled = 0, 0  # programs, and rounds since the last of them

    def run(self) -> str:
        """Returns what is wrong, "" if nothing."""
        number, share = self._args.start, 0.0
        while share < 1:
            try:
                self._round(number)
            except Exception as error:  # whatever it is, it is what we are looking for
                traceback.print_exc()
                return f"{self._again(number)}: {error!r}"
            number += 1
            share = self._share(number - self._args.start)
            self._warm(share, number - self._args.start)
        return self._grown()

    def _warm(self, share: float, rounds: int) -> None:
        """All that is made once is made in the first half of the warm-up, which goes on until every
        bench has had a round in which nothing was compiled."""
        was, self._compiled = self._compiled, programs()
        self._settled = self._settled + 1 if self._compiled == was else 0
        if not self._wide and share >= WARM / 2 and rounds >= WARM_ROUNDS // 2:
            self._wide = True
            for bench in self.benches:
                bench.every_width()
        elif self.first is None and share >= WARM and rounds >= WARM_ROUNDS:
            if self._settled >= len(SETUPS):
                self.first = Memory.now()

    def _round(self, number: int) -> None:
        bench = self.benches[number % len(self.benches)]
        one = Round(bench, np.random.default_rng([self._args.seed, number]))
        one.run(self._args.moves)
        one.compare()
        ends = Counter(row.finish for row in one.rows.values())
        self.counts.update(
            rounds=1, rows=len(one.rows), steps=one.steps, cancelled=ends[Finish.CANCELLED],
            failed=ends[Finish.ERROR], left=ends[None],
        )  # fmt: skip
        self._tell()

    def _again(self, number: int) -> str:
        """How a round is repeated."""
        seed = f"--seed {self._args.seed} --moves {self._args.moves}"
        if number == self._args.start:
            return f"{seed} --from {number} --rounds 1"
        since = f"--from {self._args.start} --rounds {number - self._args.start + 1}"
        return f"{seed} --from {number} --rounds 1, or with what came before {seed} {since}"

    def figures(self) -> dict[str, Any]:
        """What happened, and the memory then and now."""
        last = Memory.now()
        first = self.first or last
        metrics = [bench.engine.metrics.snapshot() for bench in self.benches]
        names = ("steps_failed", "preempted", "evicted_tokens", "rows_kept")
        return {
            "minutes": round((time.monotonic() - self._started) / 60, 1),
            **{key: self.counts[key] for key in ("rounds", "rows", "steps")},
            **{key: self.counts[key] for key in ("cancelled", "left", "failed")},
            **{name: int(sum(m.get(f"engine.{name}", 0) for m in metrics)) for name in names},
            "near_ties": sum(bench.judge.near for bench in self.benches),
            "rss_first_mb": first.host_mb, "rss_last_mb": last.host_mb, "rss_peak_mb": last.peak_mb,
            "device_first_mb": first.device_mb, "device_last_mb": last.device_mb,
            "objects_first": first.objects, "objects_last": last.objects,
            "programs_first": first.programs, "programs_last": last.programs,
        }  # fmt: skip

    def _share(self, rounds: int) -> float:
        if self._args.rounds:
            return float(rounds / self._args.rounds)
        return (time.monotonic() - self._started) / (60 * float(self._args.minutes))

    def _tell(self) -> None:
        if time.monotonic() - self._told >= REPORT_S:
            self._told = time.monotonic()
            shown = "rounds", "rows", "cancelled", "failed", "steps"
            print(", ".join(f"{self.counts[name]:,} {name}" for name in shown), end=", ")
            print(f"{Memory.now().host_mb:.1f} MB", flush=True)

    def _grown(self) -> str:
        last = Memory.now()
        if self.first is None and not self._args.rounds:
            return "programs were compiled to the end, so memory was never flat: soak for longer"
        first = self.first or last
        host, device = last.host_mb - first.host_mb, last.device_mb - first.device_mb
        objects = last.objects - first.objects
        if host <= HOST_MB and device <= DEVICE_MB and objects <= OBJECTS:
            return ""
        made = last.programs - first.programs
        grew = f"grew: {host:.1f} MB host, {device:.1f} MB device memory, {objects:,} objects"
        return f"{grew}, {made} programs"


def main() -> int:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--minutes", type=float, default=20.0)
    made.add_argument("--rounds", type=int, default=0, help="so many rounds instead")
    made.add_argument("--moves", type=int, default=120, help="steps of a round with arrivals")
    made.add_argument("--from", dest="start", type=int, default=0, help="first round")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    made.add_argument("--keep", action="store_true", help="write the result to benchmarks/results/")
    args = made.parse_args()
    logging.getLogger("preread").setLevel(logging.ERROR)  # steps are meant to fail
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(args, Path(folder), torch.device(name))
        wrong = soak.run()
    date = datetime.date.today().isoformat()
    result = {
        "benchmark": "soak", "date": date, "machine": this_machine(name).name, "device": name,
        "torch": torch.__version__, "seed": args.seed, **soak.figures(),
        "ok": not wrong, "wrong": wrong,
    }  # fmt: skip
    if args.keep:
        kind = "" if name == "cpu" else f"-{name}"
        (RESULTS / f"soak{kind}-{date}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
