"""What does `preread batch` add to the local engine, in CPU time of a request?

    .venv/bin/python benchmarks/batch_added.py [--rows 20000] [--profile] [--keep]

The same rows (a shared prompt, about 200 characters of their own, one token out) once as one call
of the engine's columnar API, texts in and texts out, and once from a CSV to a CSV: read, checked,
planned, journalled, run, merged, written. In turn, A B A B, on one engine whose decoder computes
nothing, so that the difference is what the batch adds and nothing else; CPU time of all threads of
the process, the medians of the rounds and of their differences. Goal: at most 60 us a request.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import torch
from batch_overhead import profiles
from host_cost import null_facade

from preread.app.engine import Engine
from preread.backend import Generate, RequestBatch
from preread.batch.forecast import forecast
from preread.batch.forms import ANSWER, TableRows, answer_cells
from preread.batch.job import begin, tallied, warm
from preread.batch.journal import Journal
from preread.batch.misfits import check_asked, check_fit
from preread.batch.misses import misses
from preread.batch.order import Order
from preread.batch.output import write_in_order
from preread.batch.run import Runner, Stop
from preread.batch.template import RowTable, Template
from preread.types import GREEDY, Prefix

WORK = Generate(max_tokens=1, sampling=GREEDY, ignore_eos=True)
ITEM = "{name}: {profile}"
Spent = dict[str, float]


def direct(engine: Engine, texts: list[str], prompt: Prefix) -> Spent:
    """One call with every row."""
    batch = RequestBatch(WORK, texts, (prompt,), stream=False)

    async def drain() -> int:
        await engine.backend.build(prompt)
        return sum([len(news.rows) async for news in engine.backend.submit(batch)])

    began = time.process_time()
    assert engine.run(drain()) == len(texts)
    return {"direct": time.process_time() - began}


def batched(engine: Engine, source: Path, folder: Path, prompt: Prefix) -> Spent:
    """As the command does it, part by part."""
    backend, spent = engine.backend, Spent()
    for old in folder.glob("journal*"):
        old.unlink()

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.process_time()
        work()
        spent[name] = time.process_time() - began

    journal = Journal.open(folder / "journal")
    table = RowTable(
        [str(source)], [(Order("m", WORK), prompt, "")], Template(ITEM), reserved=ANSWER
    )
    timed("plan", lambda: begin(journal, table))
    timed("asked", lambda: engine.run(check_asked(journal, backend, "m")))
    timed("fit", lambda: engine.run(check_fit(journal, backend, "m")))
    timed("foresee", lambda: engine.run(forecast(journal, backend, "m")))
    timed("misses", lambda: engine.run(misses(journal, backend, "m")))
    tally = tallied(journal)

    async def run() -> None:
        await warm(journal, backend, "m", tally)
        await Runner(journal, backend, "m", tally, Stop()).run()

    timed("run", lambda: engine.run(run()))
    form = TableRows(".csv", ["name", "profile"], ANSWER, answer_cells, table.files)
    timed("merge", lambda: write_in_order(journal, form, folder / "out.csv", folder / "errors"))
    assert tally.done == tally.total and not tally.failed
    journal.close()
    return spent


def main() -> None:
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--sequences", type=int, default=1024)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        figures = measured(args, Path(name))
    options = {"rows": args.rows, "rounds": args.rounds, "goal_us": 60}
    common.finish("batch_added", options | figures, keep=args.keep)


def measured(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Microseconds of a request."""
    texts = [f"{name}: {text}" for name, text in profiles(args.rows)]
    source = folder / "in.csv"
    lines = (f"{name},{text}\n" for name, text in profiles(args.rows))
    source.write_text("name,profile\n" + "".join(lines))
    prompt, engine = Prefix(common.filler(args.tokens // 3)), null_facade(args, folder)
    rounds: list[Spent] = []
    for i in range(1 + args.rounds):
        took = direct(engine, texts, prompt)
        if args.profile and i == args.rounds:
            profile = cProfile.Profile()
            took |= profile.runcall(batched, engine, source, folder, prompt)
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        else:
            took |= batched(engine, source, folder, prompt)
        rounds.append({part: seconds / args.rows * 1e6 for part, seconds in took.items()})
        print("  ".join(f"{part} {us:.1f}" for part, us in rounds[-1].items()), flush=True)
    engine.close()
    rounds = rounds[1:]  # the first warms up
    figures = {f"{part}_us": common.median([r[part] for r in rounds]) for part in rounds[0]}
    added = [sum(us for part, us in r.items()) - 2 * r["direct"] for r in rounds]
    figures |= {"added_us": common.median(added), "added_most_us": max(added)}
    return {name: round(us, 1) for name, us in figures.items()}


if __name__ == "__main__":
    main()
