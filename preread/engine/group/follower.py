"""A rank that follows: it has its part of the weights and of the KV, and does what it is told."""

from __future__ import annotations

import contextlib
import logging
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from preread.engine.arena import Arena
from preread.engine.fast import fast_steps
from preread.engine.group.collective import Ranks, meet
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
)  # fmt: skip
from preread.engine.kv import KVShape
from preread.engine.pages import Pages
from preread.engine.runner import Forward
from preread.models.load import choose_linear, read_weights
from preread.models.shard import Shard, ShardDecoder

log = logging.getLogger("preread.engine")


@dataclass(frozen=True, slots=True)
class Task:
    """What a follower computes, and where. See models.load.load_model and Ranks."""

    shard: Shard
    port: int
    device: str
    name: str
    dtype: str
    weights: str
    weights_precision: str
    seed: int
    threads: int


def follow(pipe: Connection) -> None:
    """The life of a follower's process: until rank 0 hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0, which hangs up
    with contextlib.suppress(EOFError, OSError):  # it hung up
        task = pipe.recv()
        assert isinstance(task, Task)
        try:
            follower = Follower.of(task)
            pipe.send(Reply())
            follower.join(task)
        except Exception as error:
            pipe.send(Reply(error=f"{type(error).__name__}: {error}"))
            return
        pipe.send(Reply())
        while True:
            pipe.send(follower.obey(pipe.recv()))


class Follower:
    """One rank's memory and forward passes."""

    def __init__(self, decoder: ShardDecoder, ranks: Ranks) -> None:
        self._decoder, self._ranks = decoder, ranks
        self._arena: Arena | None = None
        self._pages: Pages | None = None
        self._forward: Forward | None = None

    @staticmethod
    def of(task: Task) -> Follower:
        """Load this rank's part. Raises what loading raises."""
        if task.threads:
            torch.set_num_threads(task.threads)
        place = torch.device(task.device)
        if place.type == "cuda":
            torch.cuda.set_device(place)
        read = read_weights(
            task.name, dtype=task.dtype, place=place, weights=task.weights, seed=task.seed,
            shard=task.shard,
        )  # fmt: skip
        ranks = Ranks(task.shard.rank, task.shard.size, read.config.layers)
        linear = choose_linear(task.weights_precision, place)
        return Follower(ShardDecoder(read.own, read.tensors, linear, ranks), ranks)

    def join(self, task: Task) -> None:
        """Connect with the other ranks."""
        self._ranks.join(meet(task.port, task.shard.size), self._decoder.device)

    def obey(self, order: Order) -> Reply:
        """Do it; what goes wrong is told, not raised."""
        try:
            kv = self._do(order)
        except Exception as error:
            log.warning("rank %d: %r", self._ranks.rank, error)
            return self._reply(f"{type(error).__name__}: {error}")
        return self._reply("", kv)

    def _reply(self, error: str, kv: torch.Tensor | None = None) -> Reply:
        held = None if kv is None else Payload.of(kv)
        return Reply(error, self._ranks.passes, self._ranks.whole, self._graphs, held)

    @torch.inference_mode()
    def _do(self, order: Order) -> torch.Tensor | None:
        if isinstance(order, Open):
            self._open(order)
            return None
        arena, pages, forward = self._arena, self._pages, self._forward
        assert arena is not None and pages is not None and forward is not None
        with forward.current():
            match order:
                case Launch():
                    if forward.fast is not None and not order.graphs:
                        forward.fast.graphs = None
                    forward(order.step, stats=order.stats)
                case Write():
                    arena.write(order.runs, order.kv.tensor, order.cell)
                case Read():
                    return arena.read(order.runs, order.cell)
                case Keep():
                    arena.keep(order.runs, pages, order.ids, order.first)
                case Zero():
                    pages.zero(order.ids)
        return None

    def _open(self, order: Open) -> None:
        decoder, plan = self._decoder, order.plan
        shape = KVShape.of(decoder, order.kv_precision)
        arena = self._arena = Arena(shape, plan.extents, plan.extent_tokens)
        pages = self._pages = Pages(shape, plan.pages, plan.page_tokens)
        last = torch.zeros(order.rows, dtype=torch.int32, device=decoder.device)
        fast = fast_steps(decoder, order.config, arena, pages, last, head=False)
        self._forward = Forward(decoder, arena, pages, last, fast)

    @property
    def _graphs(self) -> bool:
        fast = None if self._forward is None else self._forward.fast
        return fast is None or fast.graphs is None or fast.graphs.usable
