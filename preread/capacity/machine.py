"""What machines can do: memory, products a second, bytes a second. No torch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from preread.capacity.shape import ITEMSIZE
from preread.errors import ConfigError

# Of the makers' figures, what one large product and one long read reach. An 8192 x 8192 x 8192
# bfloat16 product ran at 794 of 989 TFLOP/s on an H100.
PRODUCTS, READS = 0.8, 0.9
GB, T = 10**9, 1e12


@dataclass(frozen=True, slots=True)
class Machine:
    """memory in bytes; flops: floating-point operations a second (a multiply-add is two) of each
    data type; bandwidth: bytes read a second; 0 or missing: unknown. source: who says so."""

    name: str
    memory: int
    flops: Mapping[str, float]
    bandwidth: float
    source: str
    on_gpu: bool = True

    def rate(self, dtype: str) -> float:
        """Products a second in a data type; float16 and bfloat16 stand for each other."""
        twin = {"bfloat16": "float16", "float16": "bfloat16"}.get(dtype, dtype)
        return self.flops.get(dtype) or self.flops.get(twin) or 0.0


def _gpu(name: str, memory_gb: int, half: float, single: float, tb_s: float) -> Machine:
    """half, single: dense TFLOP/s of the maker in bfloat16 (float32 sums) and float32."""
    flops = {"bfloat16": half * T * PRODUCTS, "float32": single * T * PRODUCTS}
    source = f"the maker's figures, {PRODUCTS:.0%} of the products and {READS:.0%} of the reads"
    return Machine(name, memory_gb * GB, flops, tb_s * T * READS, source)


def known() -> dict[str, Machine]:
    """GPUs by the name that --machine takes."""
    return {
        "h100": _gpu("NVIDIA H100 80GB HBM3", 80, 989, 67, 3.35),
        "h200": _gpu("NVIDIA H200", 141, 989, 67, 4.8),
        "b200": _gpu("NVIDIA B200", 180, 2250, 80, 7.7),
        "a100-80gb": _gpu("NVIDIA A100-SXM4-80GB", 80, 312, 19.5, 2.04),
        "a100-40gb": _gpu("NVIDIA A100-SXM4-40GB", 40, 312, 19.5, 1.555),
        "l40s": _gpu("NVIDIA L40S", 48, 362, 91.6, 0.864),
        "l4": _gpu("NVIDIA L4", 24, 121, 30.3, 0.3),
        "rtx5090": _gpu("NVIDIA GeForce RTX 5090", 32, 209, 104.8, 1.792),
        "rtx4090": _gpu("NVIDIA GeForce RTX 4090", 24, 165, 82.6, 1.008),
        "rtx3090": _gpu("NVIDIA GeForce RTX 3090", 24, 71, 35.6, 0.936),
    }


def named(name: str) -> Machine:
    """A machine of the table. Raises ConfigError."""
    table = known()
    if name.lower() not in table:
        raise ConfigError(
            f"--machine {name}: not in the table ({', '.join(table)}).",
            hint="Or give --memory, --flops and --bandwidth.",
        )
    return table[name.lower()]


def this_machine(device: str = "auto") -> Machine:
    """This machine without its rates, unless its GPU is in the table. Asks nvidia-smi."""
    gpu = None if device == "cpu" else _this_gpu()
    if gpu is None:
        return Machine(cpu_name(), _main_memory(), {}, 0.0, "unknown", on_gpu=False)
    name, memory = gpu
    for machine in known().values():
        if machine.name == name:
            return replace(machine, memory=memory)
    return Machine(name, memory, {}, 0.0, "unknown")


def cpu_name() -> str:
    """Model and number of cores that this process may use."""
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {cores()} cores"


def cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def computed_dtype(wanted: str, published: str, machine: Machine) -> str:
    """The type that the engine would compute in; see `models.load.choose_dtype`. Raises
    ConfigError."""
    if wanted != "auto":
        if wanted not in ITEMSIZE:
            raise ConfigError(
                f"--dtype {wanted}.", hint=f"Give one of auto, {', '.join(ITEMSIZE)}."
            )
        return wanted
    words = {"avx512_bf16", "amx_bf16", "bf16"}
    if machine.on_gpu or (
        published == "bfloat16" and not words.isdisjoint(_read("/proc/cpuinfo").split())
    ):
        return published
    return "float32"


def size_bytes(text: str) -> int:
    """'80GB', '24 GiB', '512MiB' or a plain number of bytes. Raises ConfigError."""
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    units |= {f"{u}I": 1 << (10 * i) for i, u in enumerate("KMGT", 1)}
    return int(_quantity(text, r"B?", units, "--memory", "80GB or 24GiB"))


def rate_of(text: str, option: str, example: str) -> float:
    """'989T', '3.35TB/s', '400 GFLOP/s', '3e12'. Raises ConfigError."""
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
    return _quantity(text, r"(?:FLOPS?|FLOP/S|B/S|B)?", units, option, example)


def _quantity(text: str, tail: str, units: Mapping[str, int], option: str, example: str) -> float:
    found = re.fullmatch(rf"([\d.]+(?:E\+?\d+)?)\s*([KMGTP]?I?){tail}", text.strip().upper())
    try:
        value = float(found[1]) * units[found[2]] if found else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if not value > 0:
        raise ConfigError(f"{option} {text}: not a size.", hint=f"Write it as {example}.")
    return value


def _this_gpu() -> tuple[str, int] | None:
    """Name and bytes of the first GPU that CUDA would take, None without one."""
    tool, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if tool is None or visible in ("", "-1"):
        return None
    first = ["-i", visible.split(",")[0]] if visible else []
    asked = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits", *first]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
        name, mib = done.stdout.splitlines()[0].rsplit(",", 1)
        return name.strip(), int(mib) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _main_memory() -> int:
    """Bytes of the machine, or of the container it is seen from."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(memory, int(limit)) if limit.isdigit() else memory


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
