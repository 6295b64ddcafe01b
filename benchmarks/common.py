"""What every benchmark shares: the machine, its limits, a model folder, medians, one line of JSON.

A result is one JSON object: benchmark, date, machine, figures, limits. It is printed as the last
line and, with `--keep`, written to benchmarks/results/<name>-<date>.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preread import Engine

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


def parser(doc: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help="rounds; medians are reported")
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
    import torch

    date = datetime.date.today().isoformat()
    made = {"benchmark": name, "date": date, "machine": machine(), "torch": torch.__version__}
    # Of the last minute, our own threads included: above `threads`, others had the cores too.
    result = made | figures | {"load_average": round(os.getloadavg()[0], 1)}
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}-{date}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def shape_folder(path: Path) -> Path:
    """A model folder for weights="random": a config and a byte-level tokenizer, which leaves most
    of the published vocabulary unused (its cost, the LM head, stays)."""
    from preread.testing.models import write_byte_tokenizer

    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(SHAPE_05B))
    write_byte_tokenizer(path)
    return path


def opened(args: argparse.Namespace, folder: Path) -> Engine:
    """An engine on `args.model` or, with `args.shape`, on random weights of the 0.5B shape."""
    import preread

    home = folder / "home"
    if not args.shape:
        return preread.open(args.model, home=home)
    shape = shape_folder(folder / "shape")
    return preread.open(str(shape), weights="random", dtype="bfloat16", home=home)


def sized_text(engine: Engine, tokens: int) -> str:
    """Filler that makes a prefix of about `tokens` tokens."""
    from preread.types import Prefix

    words = tokens // 2
    for _ in range(6):
        counted = engine.run(engine.backend.count([Prefix(filler(words))]))[0]
        words = max(int(words * tokens / counted), 1)
    return filler(words)


def filler(words: int, seed: int = 0) -> str:
    """Plain text of about `words` words, for timings."""
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
    """What this machine can do with these threads, measured now: matrix rate in GFLOP/s, and the
    rates at which memory is read and copied (bytes read and written count) in GB/s."""
    import torch

    kind = getattr(torch, dtype)
    a, b = (torch.randn(1024, 1024, dtype=torch.float32).to(kind) for _ in range(2))
    # Written once: pages that were never touched all lie in one page of zeros.
    big, other = torch.ones(2, 64 * 1024 * 1024, dtype=torch.float32).unbind()
    gemm = min(seconds(lambda: torch.mm(a, b)) for _ in range(60))
    read = min(seconds(lambda: big.sum()) for _ in range(12))
    copy = min(seconds(lambda: other.copy_(big)) for _ in range(12))
    nbytes = big.numel() * 4
    return {
        "gemm_gflops": round(2 * 1024**3 / gemm / 1e9, 1),
        "read_gbps": round(nbytes / read / 1e9, 1),
        "copy_gbps": round(2 * nbytes / copy / 1e9, 1),
    }


@dataclass(frozen=True)
class Work:
    """What a model's forward needs at least. parameters: of its matrices without the head, which
    works on `heads` rows alone; attention_width: query heads x head size, of all layers."""

    parameters: int
    head: int
    attention_width: int
    kv_token_bytes: int
    itemsize: int

    @staticmethod
    def of(engine: Engine) -> Work:
        """Of an engine on a local model."""
        import torch

        from preread.models.config import read_config
        from preread.models.folder import resolve

        config = read_config(resolve(engine.info.model, weights=False))
        head = config.vocab_size * config.hidden_size
        embedding = 0 if config.tied else head  # looked up, not multiplied
        return Work(
            parameters=engine.parameters - head - embedding,
            head=head,
            attention_width=config.layers * config.heads * config.head_dim,
            kv_token_bytes=engine.info.kv_bytes_per_token,
            itemsize=getattr(torch, engine.info.dtype).itemsize,
        )

    def floor_s(
        self, limits: dict[str, float], tokens: int, *, past: int = 0, rows: int = 1, heads: int = 1
    ) -> float:
        """Least seconds of one step that computes `tokens`, spread over `rows` sequences that
        share `past` tokens: the products at the matrix rate, or the weights and the shared KV once
        at the read rate, whichever takes longer."""
        seen = past + tokens / rows / 2  # on average; the causal half of their own
        flops = 2 * (self.parameters * tokens + self.head * heads)
        flops += 4 * self.attention_width * tokens * seen
        nbytes = (self.parameters + self.head * bool(heads)) * self.itemsize
        nbytes += self.kv_token_bytes * past
        return max(flops / limits["gemm_gflops"], nbytes / limits["read_gbps"]) / 1e9
