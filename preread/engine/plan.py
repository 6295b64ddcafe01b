"""What fits: memory for prefixes and for running sequences, from real sizes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from preread.config import EngineSection
from preread.engine.kv import KVShape

MIB = 1 << 20
MOST_TOKENS = 1 << 20  # of either pool, when sized by itself: more is asked for by name
CPU_MIB = 8192  # the same in MiB on a CPU, whose memory belongs to others too


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How the KV memory is divided. Tokens are what the pools hold at most."""

    token_bytes: int
    extents: int
    extent_tokens: int
    pages: int
    page_tokens: int

    @property
    def prefix_tokens(self) -> int:
        return self.extents * self.extent_tokens

    @property
    def suffix_tokens(self) -> int:
        return self.pages * self.page_tokens

    def describe(self) -> str:
        """One sentence for error messages."""
        per_mib = self.token_bytes / MIB
        return (
            f"KV takes {self.token_bytes:,} bytes per token; memory holds "
            f"{self.prefix_tokens:,} prefix tokens ({self.prefix_tokens * per_mib:,.0f} MiB) and "
            f"{self.suffix_tokens:,} tokens of running sequences "
            f"({self.suffix_tokens * per_mib:,.0f} MiB)."
        )


def plan_memory(shape: KVShape, config: EngineSection, free_bytes: int | None = None) -> MemoryPlan:
    """Sizes from the configuration; where it says 0, a quarter of the free memory for prefixes
    and an eighth for sequences (on CUDA a half: the last quarter is for the steps), within reason.
    free_bytes: measured if not given."""
    free = free_memory(shape.device) if free_bytes is None else free_bytes
    cpu = shape.device.type == "cpu"
    if cpu:
        free = min(free, 4 * CPU_MIB * MIB)
    prefix = _tokens(config.prefix_memory_mb, free // 4, shape.token_bytes)
    suffix = _tokens(config.suffix_memory_mb, free // 8 if cpu else free // 2, shape.token_bytes)
    return MemoryPlan(
        shape.token_bytes,
        max(1, prefix // config.extent_tokens),
        config.extent_tokens,
        max(1, suffix // config.page_tokens),
        config.page_tokens,
    )


def _tokens(asked_mb: int, share: int, token_bytes: int) -> int:
    if asked_mb:
        return asked_mb * MIB // token_bytes
    return min(share // token_bytes, MOST_TOKENS)


def free_memory(device: torch.device) -> int:
    """Bytes that could be taken now: of the GPU, else of the machine or its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # counts what the page cache would give back
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(rows["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{x}" for x in ("max", "current"))
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free
