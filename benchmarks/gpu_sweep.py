"""Throughput against sequences at once, prefix length and own length on a GPU, with its limit.

    .venv/bin/python benchmarks/gpu_sweep.py 0.5b [--html sweep.html]

One thing varies, the others stay at 512 sequences, 2,000 shared, 50 own, 16 out. Arrays in, random
weights, context built beforehand; limits as in gpu_shared_prefix.py. `--html` draws the three.
"""

from __future__ import annotations

import argparse
import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_shared_prefix import SHAPES, Work, config, engine_for, floor_s, limits, measure

from preread.cli.plots import Plot, line_plot
from preread.kernels.kv import PRECISIONS

BASE = Work("generate", 1024, 2000, 50, 16)
SEQUENCES = 512
SWEEPS: dict[str, tuple[int, ...]] = {
    "sequences": (1, 4, 16, 64, 256, 1024),
    "prefix": (256, 1024, 4096, 16384),
    "own": (8, 32, 128, 512),
}


def swept(args: argparse.Namespace, device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """Points of each sweep: value, requests a second and what the card allows."""
    flops, rate = limits(device)
    out: dict[str, list[dict[str, Any]]] = {name: [] for name in SWEEPS}
    for sequences in sorted({SEQUENCES, *SWEEPS["sequences"]}):
        args.sequences = sequences
        engine = engine_for(args, device)
        works: list[tuple[str, int, Work]] = []
        if sequences in SWEEPS["sequences"]:
            few = min(args.requests, 4 * sequences)
            works.append(("sequences", sequences, replace(BASE, requests=few)))
        if sequences == SEQUENCES:
            plain = replace(BASE, requests=args.requests)
            works += [("prefix", n, replace(plain, prefix=n)) for n in SWEEPS["prefix"]]
            works += [("own", n, replace(plain, own=n)) for n in SWEEPS["own"]]
        for name, value, work in works:
            best, _, _ = measure(engine, work, args.rounds)
            least = floor_s(
                config(args.shape), work, sequences, engine.arena.token_bytes, flops, rate
            )
            out[name].append({
                "value": value, "req_s": round(work.requests / best, 2),
                "limit_req_s": round(work.requests / least, 2), "share": round(least / best, 3),
            })  # fmt: skip
            print(name, out[name][-1], flush=True)
        del engine
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return out


def drawn(plot: Plot) -> str:
    """One figure as SVG."""
    colours = {"cached": "#1668b8", "incontext": "#999999", "bm25": "#b85c16"}
    parts = [f"<h2>{plot.title}</h2><p>{plot.about}</p><svg viewBox='0 0 720 300' width='720'>"]
    for tick in plot.y_ticks:
        parts.append(f"<text x='80' y='{tick.at}' text-anchor='end'>{tick.label}</text>")
    for tick in plot.x_ticks:
        parts.append(f"<text x='{tick.at}' y='280' text-anchor='middle'>{tick.label}</text>")
    for line in plot.lines:
        colour = colours[line.arm]
        parts.append(f"<polyline points='{line.points}' fill='none' stroke='{colour}'/>")
        parts.append(f"<text x='616' y='{line.label_y}' fill='{colour}'>{line.label}</text>")
    return "\n".join([*parts, "</svg>"])


def page(shape: str, made: dict[str, list[dict[str, Any]]]) -> str:
    figures = []
    for name, points in made.items():
        lines = [
            ("measured", [p["req_s"] for p in points]),
            ("limit", [p["limit_req_s"] for p in points]),
        ]
        about = f"{shape}, requests a second by {name}; each step to the right doubles."
        figures.append(drawn(line_plot(name, about, lines, [p["value"] for p in points])))
    return "<!doctype html><meta charset='utf-8'>" + "\n".join(figures)


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--batch-tokens", type=int, default=0)
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--weights", choices=("full", "fp8"), default="full")
    parser.add_argument("--kv", choices=PRECISIONS, default="full")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--html", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    made = swept(args, device)
    if args.html:
        args.html.write_text(page(args.shape, made), encoding="utf-8")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps({
        "benchmark": "gpu_sweep", "date": datetime.date.today().isoformat(), "shape": args.shape,
        "kv": args.kv, "machine": name, "torch": torch.__version__, "sweeps": made,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
