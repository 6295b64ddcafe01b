"""What only the machine itself can tell: its rates, the memory in use, its name to an engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from preread.capacity.machine import cpu_name

if TYPE_CHECKING:
    import torch

SIZE, LARGE = 1024, 8192  # of the square product: on a CPU, on a GPU
READ = 64 << 20  # elements of four bytes that are read


def device_name(device: str) -> str:
    """A device as its limits are remembered: the GPU's name, or the processor's and its cores."""
    import torch

    kind = torch.device(device)
    return torch.cuda.get_device_name(kind) if kind.type == "cuda" else cpu_name()


def threads() -> int:
    """Threads of one operation on the CPU."""
    import torch

    return torch.get_num_threads()


def measured_rates(dtype: str, device: str, *, rounds: int = 12) -> tuple[float, float]:
    """(floating-point operations, bytes read) a second of this machine now: the best of some large
    products and of some long reads. device: auto, cpu or cuda. Takes a few seconds."""
    import torch

    from preread.models.load import choose_device

    place, kind = choose_device(device), getattr(torch, dtype)
    size = LARGE if place.type == "cuda" else SIZE
    left, right = torch.ones(2, size, size, device=place).to(kind).unbind()
    written = torch.ones(READ, device=place)  # pages that were never written lie all in one
    product = _best(lambda: torch.mm(left, right), place, 4 * rounds)
    read = _best(lambda: written.sum(), place, rounds)
    return 2 * size**3 / product, written.numel() * written.itemsize / read


def _best(work: Callable[[], object], place: torch.device, rounds: int) -> float:
    import torch

    def once() -> float:
        started = time.perf_counter()
        work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(rounds))


def bytes_used(device: str) -> int:
    """Bytes that are taken now: on a GPU by everybody, else by this process."""
    import torch

    place = torch.device(device)
    if place.type == "cuda":
        free, total = torch.cuda.mem_get_info(place)
        return total - free
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return 0
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
