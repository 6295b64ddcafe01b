"""What does sending through our limits, retries and warming cost, beside a plain asyncio loop?

    .venv/bin/python benchmarks/providers.py [--rows 2000] [--period 10] [--only CASE] [--keep]

Both ask the same rows of the same simulated provider (a process of its own; OpenAI's dialect, a
prefix cache, limits, latency): 2,000 shared words, 50 own words, one token out. The plain loop is
what one writes in ten lines: aiohttp, `gather`, a semaphore, and again after `retry-after-ms` on a
429. The provider counts in three ways: as a token bucket (which lets two periods' worth pass in the
first), so much in any one period (sliding), or between two full periods of its clock (fixed). Odd
rounds begin with the one, even ones with the other. Figures are simulated: of the provider there is
nothing but its manners. "over" are requests that came although there was no room; "used" is what
passed of what may pass in the time that the run took; "speed" our requests/s over the plain loop's.

`--vllm VENV/bin/python` adds vLLM's own run-batch (benchmarks/vllm_run_batch.py) where nothing is
limited: it knows no limits, and a refused row is a failed row.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import common

from preread.backend import Generate, RequestBatch
from preread.config import ProvidersSection
from preread.contexts.rows import gather
from preread.providers.opening import connect
from preread.types import Prefix

RUBRIC = " ".join(f"criterion{i % 97}" for i in range(2000))
AT_ONCE = 64
ARMS = ("plain loop", "preread")
VLLM = "vllm run-batch"
PATH = "/v1/chat/completions"
ONE = {"max_tokens": 1, "temperature": 0.0}
LATENCY = {"latency_ms": 40.0, "read_ms": 0.05}


def chat(row: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": RUBRIC}, {"role": "user", "content": row}]


def questions(rows: int) -> list[str]:
    return [f"candidate {i} " + " ".join(f"w{i % 89}-{j}" for j in range(48)) for i in range(rows)]


@contextmanager
def provider(**profile: Any) -> Iterator[str]:
    """A simulated provider in a process of its own; its URL."""
    given = [f"--{name.replace('_', '-')}={value}" for name, value in profile.items()]
    command = [sys.executable, "-m", "preread.testing.provider", "--answer", "A", *given]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def seen(url: str) -> dict[str, Any]:
    """What the provider saw."""
    with urllib.request.urlopen(f"{url}/simulation") as reply:
        told: dict[str, Any] = json.load(reply)
    return told


async def ours(url: str, rows: list[str], config: dict[str, Any]) -> int:
    """Rows answered."""
    settings = ProvidersSection(max_inflight=AT_ONCE, **config)
    backend = await connect(f"openai:{url}", "simulated", settings, env={})
    batch = RequestBatch(Generate(max_tokens=1), rows, (Prefix(RUBRIC),))
    try:
        return sum(not text for text in (await gather(backend, batch)).errors.values()) + len(rows)
    finally:
        await backend.close()


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector) as made:
        yield made


async def plain(url: str, rows: list[str], config: dict[str, Any]) -> int:
    """The same without us."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(made: aiohttp.ClientSession, row: str) -> int:
        body = {"model": "simulated", "messages": chat(row), **ONE}
        while True:
            async with places, made.post(url + PATH, json=body) as reply:
                said = await reply.json()
            if reply.status == 200:
                return len(said["choices"])
            await asyncio.sleep(int(reply.headers.get("retry-after-ms", 100)) / 1000)

    async with session() as made:
        return sum(await asyncio.gather(*(one(made, row) for row in rows)))


def run_batch(python: str, url: str, rows: list[str]) -> dict[str, Any]:
    """vLLM's, in a process of its own; its seconds are without its start."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        with source.open("w") as lines:
            for i, row in enumerate(rows):
                body = {"model": "simulated", "messages": chat(row), **ONE}
                line = {"custom_id": str(i), "method": "POST", "url": PATH, "body": body}
                lines.write(json.dumps(line) + "\n")
        script = str(Path(__file__).with_name("vllm_run_batch.py"))
        process = subprocess.Popen(
            [python, script, url, str(source), str(target), str(AT_ONCE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        while (line := process.stdout.readline()).strip() != "ready":
            if not line:
                raise SystemExit(f"{python} cannot run {script}: is vLLM 0.26 there?")
        said, _ = process.communicate("\n")
    told: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return told


def measure(
    arm: str, rows: list[str], config: dict[str, Any], profile: dict[str, Any], python: str
) -> Any:
    """One arm against a fresh provider."""
    with provider(**LATENCY, **profile) as url:
        if arm == VLLM:
            done = run_batch(python, url, rows)
        else:
            wall, cpu = time.perf_counter(), time.process_time()
            answered = asyncio.run((ours if arm == "preread" else plain)(url, rows, config))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            done = {"seconds": wall, "cpu_s": cpu, "answered": answered}
        told = seen(url)
    assert done["answered"] == len(rows) == told["answered"], (done, told)
    wall, tokens = done["seconds"], told["tokens"]
    figures = {
        "seconds": round(wall, 2),
        "requests_per_s": round(len(rows) / wall, 1),
        "client_cpu_us": round(1e6 * done["cpu_s"] / len(rows)),
        "computed_tokens": tokens["computed"],
        "cached_share": round(tokens["cached"] / (tokens["cached"] + tokens["computed"]), 4),
        "over": told["over"],
    }
    for name, meter in told["limits"].items():
        periods = wall / profile["period_s"]
        even = profile["counts"] == "bucket"
        allowed = meter["limit"] * (periods + 1 if even else int(periods) + 1)
        used = round(min(meter["passed"] / allowed, 1), 4)
        worst = round(meter["worst"] / meter["limit"], 4)
        figures[name.split()[-1]] = {"used": used, "worst_period": worst}
    return figures


def cases(limit: int, period_s: float) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """What the provider is told, and what we are, by name."""
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"no limits": ({}, {})}
    rpm = {"requests": limit}, {"rpm": limit}
    tpm = {"tokens": limit * 2100}, {"tpm": limit * 2100}
    for counts in ("bucket", "sliding", "fixed"):
        for name, (profile, config) in (("requests", rpm), ("tokens", tpm)):
            extra = {"period_s": period_s, "counts": counts}
            found[f"{name}, {counts}"] = {**profile, **extra}, {**config, "period_s": period_s}
    return found


def main() -> None:
    parser = common.parser(__doc__, rounds=1)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--period", type=float, default=10.0, help="seconds; limits are per period")
    parser.add_argument("--periods", type=int, default=4, help="the limit is rows / periods")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--vllm", default="", help="a Python that has vLLM 0.26")
    args = parser.parse_args()
    rows = questions(args.rows)
    limit = args.rows // args.periods
    figures: dict[str, Any] = {}
    for case, (profile, config) in cases(limit, args.period).items():
        if args.only not in case:
            continue
        arms = (*ARMS, VLLM) if args.vllm and not profile else ARMS
        rates: dict[str, list[float]] = {arm: [] for arm in arms}
        for turn in range(args.rounds):
            for arm in arms if turn % 2 == 0 else reversed(arms):
                told = measure(arm, rows, config, profile, args.vllm)
                figures[f"{case}: {arm}" + (f" ({turn + 1})" if turn else "")] = told
                rates[arm].append(told["requests_per_s"])
                print(f"{case:18} {arm:11} {told}", flush=True)
        own = statistics.median(rates["preread"])
        for arm in set(arms) - {"preread"}:
            speed = round(own / statistics.median(rates[arm]), 4)
            figures[f"{case}: speed over {arm}"] = speed
            print(f"{case:18} speed {speed:.4f} of {arm}", flush=True)
    shape = {"rows": args.rows, "period_s": args.period, "limit": limit, "at_once": AT_ONCE}
    only = args.only.replace(", ", "_").replace(" ", "_")
    period = "" if args.only == "no limits" else f"{args.period:.0f}s"
    name = "_".join(part for part in ("providers", period, only) if part)
    common.finish(name, {"simulated": True, **shape, **figures}, keep=args.keep)


if __name__ == "__main__":
    main()
