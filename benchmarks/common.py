"""What every benchmark shares: the machine, the model folder, medians, and one JSON line at the end.

A result is one JSON object: question, date, machine, figures, limits. It is printed as the last line
and kept in benchmarks/results/ as <name>-<date>-<machine>.json with `--keep`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# Qwen2.5-0.5B's published shape; weights are random, so timings only.
SHAPE_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="rounds; medians are reported")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    made.add_argument("--keep", action="store_true", help="write the result to benchmarks/results/")
    return made


def machine() -> str:
    """CPU model, core count and GPU if one is used."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def side_by_side(arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every arm, A B A B …, after one warm-up each: drift hits all arms alike."""
    for work in arms.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, work in arms.items():
            times[name].append(seconds(work))
    return times


def median(values: list[float]) -> float:
    return statistics.median(values)


def paired_ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios round by round."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def finish(name: str, figures: dict[str, Any], *, keep: bool) -> None:
    """Print the figures as the last line; with keep, write them beside the others."""
    date = datetime.date.today().isoformat()
    result = {"benchmark": name, "date": date, "machine": machine(), **figures}
    line = json.dumps(result)
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}-{date}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(line)


def shape_folder(path: Path) -> Path:
    """A model folder that holds a config and nothing else: for weights="random"."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(SHAPE_05B))
    return path


def filler(words: int, seed: int = 0) -> str:
    """Plain text of about `words` words, for timings."""
    import random

    rng = random.Random(seed)
    syllables = ("ba", "ne", "lo", "ri", "tu", "mar", "sen", "dor", "vi", "kal")
    lines, line = [], []
    for i in range(words):
        line.append("".join(rng.choices(syllables, k=rng.randint(1, 3))))
        if i % 14 == 13:
            lines.append(" ".join(line).capitalize() + ".")
            line = []
    return "\n".join([*lines, " ".join(line)])


def measured_limits(dtype: str) -> dict[str, float]:
    """What this machine can do, measured now: matrix rate in GFLOP/s and copy bandwidth in GB/s."""
    import torch

    kind = getattr(torch, dtype)
    a, b = (torch.randn(1024, 1024, dtype=torch.float32).to(kind) for _ in range(2))
    big = torch.empty(64 * 1024 * 1024, dtype=torch.float32)
    other = torch.empty_like(big)
    gemm = min(seconds(lambda: torch.mm(a, b)) for _ in range(12))
    copy = min(seconds(lambda: other.copy_(big)) for _ in range(6))
    return {
        "gemm_gflops": round(2 * 1024**3 / gemm / 1e9, 1),
        "copy_gbps": round(2 * big.numel() * 4 / copy / 1e9, 1),
    }
