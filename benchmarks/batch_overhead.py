"""What does a batch cost besides computing? Read, check, plan, journal, merge and write 170,000
rows whose backend answers at once.

python benchmarks/batch_overhead.py                 # rows of a CSV and a shared prompt
python benchmarks/batch_overhead.py --kind openai   # batch lines that repeat the prompt (1.9 GB)

Limit of it: what SQLite takes to insert each row twice (request and result), measured beside it on
the same rows with nothing else done.
"""

from __future__ import annotations

import asyncio
import csv
import json
import random
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import filler, finish, parser
from preread.backend import Generate
from preread.batch.bodies import Defaults
from preread.batch.forecast import forecast
from preread.batch.forms import ANSWER, Form, OpenAILines, TableRows, answer_cells
from preread.batch.job import begin, models, tallied
from preread.batch.journal import Journal
from preread.batch.misfits import check_asked, check_fit
from preread.batch.misses import misses
from preread.batch.openai import BatchFile
from preread.batch.order import Order
from preread.batch.output import write_in_order
from preread.batch.run import Runner, Stop
from preread.batch.table import Table
from preread.batch.template import RowTable, Template
from preread.testing.instant import InstantBackend
from preread.types import Prefix


def profiles(rows: int) -> Iterator[tuple[str, str]]:
    """(name, about 200 characters of text) of each row."""
    rng = random.Random(0)
    words = filler(20_000).split()
    for i in range(rows):
        at = rng.randrange(len(words) - 40)
        yield f"Candidate {i}", " ".join(words[at : at + 40])


def make(kind: str, folder: Path, rows: int, prompt: str) -> Path:
    if kind == "rows":
        path = folder / "in.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(("name", "profile"))
            csv.writer(file).writerows(profiles(rows))
        return path
    path = folder / "in.jsonl"
    with path.open("w") as file:
        for i, (name, text) in enumerate(profiles(rows)):
            messages = [{"role": "system", "content": prompt},
                        {"role": "user", "content": f"{name}: {text}"}]  # fmt: skip
            body = {"model": "m", "messages": messages, "max_tokens": 4}
            line = {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps(line | {"body": body}) + "\n")
    return path


def table_of(kind: str, source: Path, prompt: str) -> Table:
    if kind == "openai":
        return BatchFile([str(source)], Defaults())
    asks = [(Order("m", Generate(max_tokens=4)), Prefix(prompt), "")]
    return RowTable([str(source)], asks, Template("{name}: {profile}"), reserved=ANSWER)


def peak_mb() -> float:
    """Of the process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def measured(kind: str, folder: Path, source: Path, prompt: str) -> dict[str, Any]:
    """Seconds of each part, and the most memory until its end."""
    table, times = table_of(kind, source, prompt), {}
    journal = Journal.open(folder / "journal")
    backend = InstantBackend(limit=32_768, remember=False)

    def timed(name: str, started: tuple[float, float]) -> None:
        times[f"{name}_s"] = round(time.perf_counter() - started[0], 2)
        times[f"{name}_cpu_s"] = round(time.process_time() - started[1], 2)
        times[f"{name}_peak_mb"] = peak_mb()
        print(f"{name}: {times[f'{name}_s']} s, {times[f'{name}_peak_mb']} MB", flush=True)

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    at = now()
    begin(journal, table)
    timed("read_and_plan", at)
    at = now()
    for look in (check_asked, check_fit, forecast, misses):
        asyncio.run(look(journal, backend, "m"))
    timed("foresee", at)
    at = now()
    tally = tallied(journal)
    for model, _ in models(journal):
        asyncio.run(Runner(journal, backend, model, tally, Stop()).run())
    timed("run", at)
    at = now()
    form: Form = OpenAILines(journal, 0)
    output = folder / ("out.csv" if kind == "rows" else "out.jsonl")
    if kind == "rows":
        form = TableRows(".csv", ["name", "profile"], ANSWER, answer_cells, table.files)
    written = write_in_order(journal, form, output, folder / "errors.jsonl")
    timed("merge", at)
    journal.close()
    assert written.rows == backend.rows == tally.total
    return times


def floor_s(folder: Path, rows: int) -> float:
    """Two inserts a row and nothing else, by the first rows, which are held in memory."""
    db = sqlite3.connect(folder / "floor", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("CREATE TABLE a (idx INTEGER PRIMARY KEY, text TEXT)")
    db.execute("CREATE TABLE b (idx INTEGER PRIMARY KEY, text TEXT)")
    some = min(rows, 170_000)
    data = list(enumerate(text for _, text in profiles(some)))
    at = time.perf_counter()
    for table in "ab":
        db.execute("BEGIN")
        db.executemany(f"INSERT INTO {table} VALUES (?, ?)", data)
        db.execute("COMMIT")
    took = time.perf_counter() - at
    db.close()
    return took * rows / some


def main() -> None:
    options = parser(__doc__, rounds=1)
    options.add_argument("--rows", type=int, default=170_000)
    options.add_argument("--kind", choices=("rows", "openai"), default="rows")
    args = options.parse_args()
    prompt = filler(2000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make(args.kind, folder, args.rows, prompt)
        megabytes = source.stat().st_size / 1e6
        before = resource.getrusage(resource.RUSAGE_SELF)
        at = time.perf_counter()
        times = measured(args.kind, folder, source, prompt)
        total = time.perf_counter() - at
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        journal_mb = (folder / "journal").stat().st_size / 1e6
        floor = floor_s(folder, args.rows)
    figures = {
        "kind": args.kind,
        "rows": args.rows,
        "input_mb": round(megabytes, 1),
        "journal_mb": round(journal_mb, 1),
        **times,
        "total_s": round(total, 2),
        "cpu_s": round(cpu, 2),
        "run_cpu_us_per_row": round(1e6 * times["run_cpu_s"] / args.rows, 1),
        "peak_rss_mb": times["merge_peak_mb"],
        "limits": {"two_inserts_s": round(floor, 2)},
    }
    finish("batch_overhead" + ("" if args.kind == "rows" else "_openai"), figures, keep=args.keep)


if __name__ == "__main__":
    main()
