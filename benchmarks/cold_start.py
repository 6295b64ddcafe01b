"""How soon does a fresh process have a context from disk ready, against recomputing it?

    .venv/bin/python benchmarks/cold_start.py [--tokens 3000] [--dtype bfloat16]

Qwen2.5-0.5B's shape, random weights from a seed. A first process builds and stores; then fresh
processes alternate: one loads from disk, one recomputes without a store. Imports and opening the
model are left out of the ratio and reported beside it. The page cache is warm, as after a build.
Physical limit of the load: KV bytes over the measured copy rate. Goal: >= 50 x.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common


def child(folder: Path, arm: str, tokens: int, dtype: str, threads: int) -> None:
    """One fresh process: imports, open, make the prefix ready; prints seconds of each."""
    started = time.perf_counter()
    import numpy as np
    import torch

    import preread

    torch.set_num_threads(threads)
    imported = time.perf_counter()
    home = folder / ("home" if arm != "recompute" else "empty")
    ids = np.random.default_rng(0).integers(10, 150_000, tokens).astype(np.int32)
    with preread.open(str(folder / "shape"), weights="random", dtype=dtype, home=home) as engine:
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


def spawn(folder: Path, arm: str, args: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", arm, "--folder", str(folder)]
    command += ["--tokens", str(args.tokens), "--dtype", args.dtype, "--threads", str(args.threads)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--child", default="")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.child:
        child(args.folder, args.child, args.tokens, args.dtype, args.threads)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common.shape_folder(folder / "shape")
        spawn(folder, "build", args)
        runs: dict[str, list[dict[str, float]]] = {"load": [], "recompute": []}
        for _ in range(args.rounds):
            for arm, kept in runs.items():
                kept.append(spawn(folder, arm, args))
    assert all(r["computed"] <= 1 for r in runs["load"]), "the context did not come from disk"
    assert all(r["loaded"] == 0 for r in runs["recompute"])
    ready = {arm: [r["ready_s"] for r in kept] for arm, kept in runs.items()}
    ratio = common.paired_ratio(ready["recompute"], ready["load"])
    limits = common.measured_limits(args.dtype)
    kv_bytes = runs["load"][0]["kv_bytes"]
    floor = kv_bytes / limits["copy_gbps"] / 1e9
    print(f"{args.tokens:,} tokens, {kv_bytes / 1e6:.1f} MB of KV")
    for arm, values in ready.items():
        opened = common.median([r["open_s"] for r in runs[arm]])
        imports = common.median([r["import_s"] for r in runs[arm]])
        print(
            f"{arm:10} ready {common.median(values) * 1e3:9.1f} ms"
            f"   (imports {imports:.2f} s, model {opened:.2f} s, beside it)"
        )
    print(f"ratio {ratio:.1f} x   goal >= 50 x   limit of the load {floor * 1e3:.1f} ms")
    figures = {
        "tokens": args.tokens,
        "dtype": args.dtype,
        "kv_bytes": kv_bytes,
        "load_ms": round(common.median(ready["load"]) * 1e3, 1),
        "recompute_ms": round(common.median(ready["recompute"]) * 1e3, 1),
        "ratio": round(ratio, 1),
        "goal_ratio": 50,
        "load_limit_ms": round(floor * 1e3, 2),
        "import_s": round(common.median([r["import_s"] for r in runs["load"]]), 2),
        "open_s": round(common.median([r["open_s"] for r in runs["load"]]), 2),
        "threads": args.threads,
        "rounds": args.rounds,
        **limits,
    }
    common.finish("cold_start", figures, keep=args.keep)


if __name__ == "__main__":
    main()
