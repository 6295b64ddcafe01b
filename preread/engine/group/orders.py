"""What rank 0 tells the others to do, and what they answer. They travel between a process and the
children it started, by pickle over their pipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from preread.config import EngineSection
from preread.engine.arena import Cell, Run
from preread.engine.plan import MemoryPlan
from preread.engine.step import Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Int32Array


@dataclass(frozen=True, slots=True)
class Payload:
    """A tensor as bytes: what travels without shared memory, which containers have little of."""

    data: NDArray[np.uint8]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(x: torch.Tensor) -> Payload:
        x = x.cpu().contiguous()
        return Payload(x.flatten().view(torch.uint8).numpy(), tuple(x.shape), x.dtype)

    @property
    def tensor(self) -> torch.Tensor:
        return torch.from_numpy(self.data).view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class Open:
    """Take memory. rows: of what the sampler remembers; kv_precision: see KVShape."""

    plan: MemoryPlan
    config: EngineSection
    rows: int
    kv_precision: str


@dataclass(frozen=True, slots=True)
class Launch:
    """Compute a step. stats: as rank 0 does, so that both take the same graph; graphs: whether
    graphs are used at all from here on."""

    step: Step
    stats: bool
    graphs: bool


@dataclass(frozen=True, slots=True)
class Write:
    """Fill slots of the arena; see Arena.write."""

    runs: list[Run]
    kv: Payload
    cell: Cell | None


@dataclass(frozen=True, slots=True)
class Read:
    """Give back what slots of the arena hold."""

    runs: list[Run]
    cell: Cell | None


@dataclass(frozen=True, slots=True)
class Keep:
    """See Arena.keep."""

    runs: list[Run]
    ids: Int32Array
    first: int


@dataclass(frozen=True, slots=True)
class Zero:
    """See Pages.zero."""

    ids: Int32Array


Order = Open | Launch | Write | Read | Keep | Zero


@dataclass(frozen=True, slots=True)
class Reply:
    """error: what went wrong, "" if nothing; passes: forward passes that were begun so far; whole:
    none is left open; graphs: steps can still be captured here."""

    error: str = ""
    passes: int = 0
    whole: bool = True
    graphs: bool = True
    kv: Payload | None = None


def bare(step: Step) -> Step:
    """A step without what only rank 0 reads of it: segments of its tree."""
    chunks = tuple(replace(chunk, leaf=None) for chunk in step.chunks)  # type: ignore[arg-type]
    return replace(step, chunks=chunks)
