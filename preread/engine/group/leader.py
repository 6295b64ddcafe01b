"""Rank 0 of a group: an engine like any other, but whatever it does to its memory or its decoder
the others are told, in one order, and asked whether they did it.

A rank that fails between two sums leaves the others waiting for it, or worse: out of step. So that
is the end of the engine (GroupLost), never a step to be repeated.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import torch

from preread.config import EngineSection
from preread.engine.arena import Arena, Cell, Run
from preread.engine.fast import fast_steps
from preread.engine.group.collective import TIMEOUT, Ranks
from preread.engine.group.orders import (
    Keep,
    Launch,
    Open,
    Order,
    Payload,
    Read,
    Reply,
    Write,
    Zero,
    bare,
)  # fmt: skip
from preread.engine.kv import KVShape
from preread.engine.pages import Pages
from preread.engine.parts import Parts
from preread.engine.plan import MemoryPlan
from preread.engine.runner import Forward, Runner
from preread.engine.sampler import Flight, Sampler
from preread.engine.step import Step
from preread.engine.uploads import InTurn, Uploads
from preread.errors import GroupLost
from preread.models.interface import Decoder

if TYPE_CHECKING:
    from preread.types import Int32Array

AGAIN = "Open the engine again; preread doctor shows whether all GPUs work."
LEAVE_S = 5.0  # a follower may take to leave by itself


class Followers:
    """The other ranks. One order at a time, whichever thread gives it."""

    def __init__(
        self, pipes: Sequence[Connection], processes: Sequence[subprocess.Popen[bytes]],
        heads: Sequence[tuple[int, int]],
    ) -> None:  # fmt: skip
        """heads: KV heads [g, h) of every rank, rank 0 first."""
        self._pipes, self._processes = tuple(pipes), tuple(processes)
        self.heads = tuple(heads)
        self.lock = threading.RLock()

    def tell(self, orders: Sequence[Order]) -> None:
        """Each its order. Hold the lock until the replies are taken. Raises GroupLost."""
        for rank, (pipe, order) in enumerate(zip(self._pipes, orders, strict=True), 1):
            try:
                pipe.send(order)
            except OSError as exc:
                raise self.lost(rank, "hung up") from exc

    def replies(self) -> list[Reply]:
        """What each says; waits for it. Raises GroupLost."""
        return [self._reply(rank, pipe) for rank, pipe in enumerate(self._pipes, 1)]

    def ask(self, orders: Sequence[Order]) -> list[Reply]:
        """Tell and take the replies. Raises GroupLost for whatever went wrong."""
        with self.lock:
            self.tell(orders)
            replies = self.replies()
        for rank, reply in enumerate(replies, 1):
            if reply.error:
                raise self.lost(rank, reply.error)
        return replies

    def all(self, order: Order) -> list[Reply]:
        """The same for everybody."""
        return self.ask([order] * len(self._pipes))

    def close(self) -> None:
        """Hang up; who does not leave by itself is ended."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def lost(self, rank: int, why: str) -> GroupLost:
        return GroupLost(f"Rank {rank} of the group: {why}.", hint=AGAIN)

    def _reply(self, rank: int, pipe: Connection) -> Reply:
        with suppress(EOFError, OSError):
            if not pipe.poll(TIMEOUT.total_seconds()):
                raise self.lost(rank, "no answer")
            reply = pipe.recv()
            assert isinstance(reply, Reply)
            return reply
        raise self.lost(rank, "its process ended")


class GroupArena(Arena):
    """Rank 0's arena; what is written or read is all heads' KV."""

    def __init__(self, shape: KVShape, plan: MemoryPlan, followers: Followers) -> None:
        super().__init__(shape, plan.extents, plan.extent_tokens)
        self._followers = followers

    @property
    def token_bytes(self) -> int:
        return self.shape.token_bytes // self.shape.kv_heads * self._followers.heads[-1][1]

    def write(
        self, runs: list[Run], kv: torch.Tensor, cell: Cell | None = None, *, wait: bool = True
    ) -> None:
        kv = kv.cpu()
        mine, *others = (self._part(rank, cell) for rank in range(len(self._followers.heads)))
        first = 0 if cell is None else cell[2]
        self._followers.ask([
            Write(runs, Payload.of(kv[:, :, g - first : h - first]), own)
            for g, h, own in others
        ])  # fmt: skip
        g, h, own = mine
        super().write(runs, kv[:, :, g - first : h - first], own)

    def slots(self, runs: list[Run], cell: Cell) -> None:
        return None  # no rank has all heads

    def read(self, runs: list[Run], cell: Cell | None = None) -> torch.Tensor:
        mine, *others = (self._part(rank, cell) for rank in range(len(self._followers.heads)))
        replies = self._followers.ask([Read(runs, own) for _, _, own in others])
        rest = [reply.kv.tensor for reply in replies if reply.kv is not None]
        return torch.cat([super().read(runs, mine[2]), *rest], dim=2)

    def keep(self, runs: list[Run], pages: Pages, ids: Int32Array, first: int) -> None:
        self._followers.all(Keep(runs, ids, first))
        super().write(runs, pages.read(ids)[:, :, :, first : first + sum(n for _, n in runs)])

    def _part(self, rank: int, cell: Cell | None) -> tuple[int, int, Cell]:
        """Heads [g, h) of a cell that a rank has, perhaps none, and the cell as that rank names
        it."""
        start, end = self._followers.heads[rank]
        i, j, g, h = cell or (0, self.shape.layers, 0, self._followers.heads[-1][1])
        g, h = min(max(g, start), end), max(min(h, end), start)
        h = max(g, h)
        return g, h, (i, j, g - start, h - start)


class GroupPages(Pages):
    """Rank 0's pages."""

    def __init__(self, shape: KVShape, plan: MemoryPlan, followers: Followers) -> None:
        super().__init__(shape, plan.pages, plan.page_tokens)
        self._followers = followers

    def zero(self, ids: Int32Array) -> None:
        self._followers.all(Zero(ids))
        super().zero(ids)


class GroupRunner(Runner):
    """Launches a step on every rank."""

    def __init__(
        self, forward: Forward, sampler: Sampler, followers: Followers, ranks: Ranks
    ) -> None:
        super().__init__(forward, sampler)
        self._followers, self._ranks = followers, ranks
        self._graphs = True

    def launch(self, step: Step) -> Flight:
        with self._followers.lock:
            plain = self._sampler.plain(step)
            order = Launch(bare(step), plain, self._graphs)
            self._followers.tell([order] * (self._ranks.size - 1))
            try:
                flight = super().launch(step)
            except Exception as error:
                if not self._ranks.whole:
                    raise self._followers.lost(0, repr(error)) from error
                self._settle()
                raise
            self._settle()
        return flight

    def _settle(self) -> None:
        """All have launched it, or none goes on. Graphs are for all or for none."""
        graphs = self._captures
        for rank, reply in enumerate(self._followers.replies(), 1):
            if reply.error or not reply.whole or reply.passes != self._ranks.passes:
                raise self._followers.lost(rank, reply.error or "not in step")
            graphs = graphs and reply.graphs
        if not graphs and self._graphs:
            self._graphs = False
            if self._forward.fast is not None:
                self._forward.fast.graphs = None

    @property
    def _captures(self) -> bool:
        fast = self._forward.fast
        return fast is None or fast.graphs is None or fast.graphs.usable


class GroupParts(Parts):
    """The parts of an engine over a group of devices."""

    def uploads(self, device: torch.device) -> Uploads:
        return InTurn()  # what is written is an order, which all ranks follow between their steps

    def __init__(self, followers: Followers, ranks: Ranks) -> None:
        self._followers, self._ranks = followers, ranks

    def pools(self, shape: KVShape, plan: MemoryPlan) -> tuple[Arena, Pages]:
        self._plan = plan
        return (
            GroupArena(shape, plan, self._followers), GroupPages(shape, plan, self._followers),
        )  # fmt: skip

    def runner(
        self, decoder: Decoder, pools: tuple[Arena, Pages], sampler: Sampler, config: EngineSection
    ) -> Runner:
        precision = pools[0].shape.precision
        self._followers.all(Open(self._plan, config, len(sampler.last), precision))
        fast = fast_steps(decoder, config, *pools, sampler.last)
        forward = Forward(decoder, *pools, sampler.last, fast)
        return GroupRunner(forward, sampler, self._followers, self._ranks)

    def close(self) -> None:
        self._followers.close()
