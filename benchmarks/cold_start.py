"""How soon does a fresh process have a context from disk ready, against recomputing it?

    .venv/bin/python benchmarks/cold_start.py [--tokens 3000] [--dtype bfloat16] [--rounds 3]

Qwen2.5-0.5B's shape, random weights from a seed. A first process builds and stores; then fresh
processes take turns: one loads from disk with the page cache warm, as after a build; one does so
after the page cache has dropped the files; one recomputes without a store. Each makes the prefix
ready once. Imports and opening the model are left out of the ratio and reported beside it.
Physical limit of the load: reading the KV and copying it once, at the measured rates (and the
medium's, where the page cache is cold). Goal: >= 50 x, page cache warm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

ARMS = ("load", "load_cold", "recompute")


def child(folder: Path, arm: str, args: argparse.Namespace) -> None:
    """One fresh process: imports, open, make the prefix ready; prints seconds of each."""
    started = time.perf_counter()
    import numpy as np
    import torch

    import preread

    imported = time.perf_counter()
    torch.set_num_threads(args.threads)
    home = folder / ("empty" if arm == "recompute" else "home")
    ids = np.random.default_rng(0).integers(10, 150_000, args.tokens).astype(np.int32)
    shape = str(folder / "shape")
    with preread.open(shape, weights="random", dtype=args.dtype, home=home) as engine:
        opened = time.perf_counter()
        report = engine.prefill(ids, store=arm != "recompute")
        ready = time.perf_counter()
    figures = {
        "import_s": imported - started,
        "open_s": opened - imported,
        "ready_s": ready - opened,
        "loaded": report.loaded_tokens,
        "computed": report.computed_tokens,
        "kv_bytes": report.kv_bytes,
    }
    print(json.dumps(figures))


def spawn(folder: Path, arm: str, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", arm, "--folder", str(folder)]
    command += ["--tokens", str(args.tokens), "--dtype", args.dtype, "--threads", str(args.threads)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def drop_page_cache(folder: Path) -> None:
    """Only clean pages leave, and the store has synced its files."""
    for path in folder.rglob("*.kv"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """What the children said: runs of each arm, in turn."""
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common.shape_folder(folder / "shape")
        spawn(folder, "build", args)
        for _ in range(args.rounds):
            for arm in ARMS:
                if arm == "load_cold":
                    drop_page_cache(folder / "home")
                runs[arm].append(spawn(folder, arm, args))
    for arm, kept in runs.items():
        loaded = 0 if arm == "recompute" else args.tokens
        assert all(r["loaded"] == loaded == args.tokens - r["computed"] for r in kept), (arm, kept)
    return runs


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.folder, args.child, args)
        return
    runs = measure(args)
    limits = common.measured_limits(args.dtype)
    ready = {arm: [r["ready_s"] for r in kept] for arm, kept in runs.items()}
    beside = {
        arm: {part: common.median([r[part] for r in kept]) for part in ("import_s", "open_s")}
        for arm, kept in runs.items()
    }
    ratio, cold_ratio = (
        common.paired_ratio(ready["recompute"], ready[arm]) for arm in ("load", "load_cold")
    )
    kv_bytes = runs["load"][0]["kv_bytes"]
    floor = kv_bytes / limits["read_gbps"] / 1e9 + 2 * kv_bytes / limits["copy_gbps"] / 1e9
    print(f"{args.tokens:,} tokens, {kv_bytes / 1e6:.1f} MB of KV")
    for arm, values in ready.items():
        print(
            f"{arm:10} ready {common.median(values) * 1e3:9.1f} ms   (beside it: imports"
            f" {beside[arm]['import_s']:.2f} s, model {beside[arm]['open_s']:.2f} s)"
        )
    print(f"ratio {ratio:.1f} x, page cache cold {cold_ratio:.1f} x   goal >= 50 x")
    print(f"limit of the load {floor * 1e3:.1f} ms")
    figures = {
        "tokens": args.tokens,
        "dtype": args.dtype,
        "kv_bytes": kv_bytes,
        **{f"{arm}_ms": round(common.median(t) * 1e3, 1) for arm, t in ready.items()},
        "ratio": round(ratio, 1),
        "cold_ratio": round(cold_ratio, 1),
        "goal_ratio": 50,
        "load_limit_ms": round(floor * 1e3, 2),
        "all_ms": {arm: [round(t * 1e3, 1) for t in values] for arm, values in ready.items()},
        **{part: round(seconds, 2) for part, seconds in beside["load"].items()},
        "threads": args.threads,
        "rounds": args.rounds,
        **limits,
    }
    common.finish("cold_start", figures, keep=args.keep)


if __name__ == "__main__":
    main()
